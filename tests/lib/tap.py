# SPDX-License-Identifier: Apache-2.0
"""One line a test, in TAP: what tests/run reads."""

import sys
import time
import traceback


class Skip(Exception):
    """Raised by a test that this machine cannot run; the reason is shown."""


class Tap:
    def __init__(self, only=None):
        self.only = only  # a substring: other tests are left out
        self.passed = self.failed = self.skipped = 0

    def run(self, name, function, *args, **keys):
        """Runs one test: it passes unless it raises."""
        if self.only and self.only not in name:
            return
        number = self.passed + self.failed + self.skipped + 1
        start = time.monotonic()
        try:
            function(*args, **keys)
        except Skip as e:
            self.skipped += 1
            print(f"ok {number} - {name} # SKIP {e}", flush=True)
        except Exception as e:  # noqa: BLE001: whatever it was, the next test still runs
            self.failed += 1
            print(f"not ok {number} - {name}", flush=True)
            for line in traceback.format_exc().splitlines():
                print(f"#   {line}", flush=True)
            for line in getattr(e, "detail", "").splitlines():
                print(f"#   {line}", flush=True)
        else:
            self.passed += 1
            print(f"ok {number} - {name} # {time.monotonic() - start:.1f} s", flush=True)

    def end(self):
        print(f"1..{self.passed + self.failed + self.skipped}", flush=True)
        sys.exit(1 if self.failed or not self.passed + self.skipped else 0)
