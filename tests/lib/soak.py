# SPDX-License-Identifier: Apache-2.0
"""Senders for soak tests: what a VM's agent does over a long time, polite and not, and what must be
upstream afterwards. tests/host/soak.py and tests/vm/soak.py drive them."""

import random
import threading
import time

import report as rp

SIZES = ((60, 5_000), (25, 100_000), (12, 1_000_000), (3, 8_000_000))


class Vm:
    """One sender of a VM at a time, so that the last accepted report is known. path: where its
    connections go; sizes: (weight, bytes), a report has up to twice as many; also: answers that
    are expected besides."""

    def __init__(self, cid, path, seed, sizes=SIZES, also=()):
        self.cid, self.path, self.sizes = cid, path, sizes
        self.rng = random.Random(f"{seed}/{cid}")
        self.lock = threading.Lock()
        self.refusals = (rp.BUSY, rp.DEADLINE, *also)
        self.last = None
        self.unsure = []  # sent after it, without an answer: accepted or not
        self.sent = self.answered = 0

    def payload(self):
        if self.last and self.rng.random() < 0.4:
            return self.last
        size = self.rng.choices([s for _, s in self.sizes], [w for w, _ in self.sizes])[0]
        return rp.report(self.cid, size + self.rng.randrange(size), seed=self.rng.random())

    def settle(self, payload, status):
        """What an answer says of what must be upstream."""
        self.sent += 1
        if status in (rp.ACCEPTED, rp.NOTHING_TO_DO):
            self.answered += 1
            self.last, self.unsure = payload, []
        elif status is None:
            self.unsure.append(payload)
        elif status not in self.refusals:
            raise AssertionError(f"VM {self.cid} was answered {status}")

    def act(self):
        kind = self.rng.choices(("vsr1", "vsr2", "raw", "cut", "garbage"), (40, 30, 10, 15, 5))[0]
        payload = self.payload()
        if kind == "cut":
            with rp.connect(self.path) as s:
                data = rp.header(payload) + payload
                try:
                    s.sendall(data[: self.rng.randrange(len(data))])
                except OSError:
                    pass
            return
        if kind == "garbage":
            rp.send_raw(self.path, b"\x0a" + self.rng.randbytes(self.rng.randrange(1, 2000)))
            return
        if kind == "raw":
            # Only a framed report is sure to be accepted: what a raw one became is asked for.
            self.unsure.append(payload)
            rp.send_raw(self.path, payload)
            kind = "vsr1"
        try:
            status = (rp.send_framed(self.path, payload) if kind == "vsr1"
                      else rp.send_offer(self.path, payload)[0])
        except OSError:
            status = None  # the relay, or this VM, is away
        self.settle(payload, status)

    def send_one(self):
        """A small report that must be accepted."""
        payload = rp.report(self.cid, 5000, seed=self.rng.random())
        status = rp.send_framed(self.path, payload)
        assert status == rp.ACCEPTED, f"VM {self.cid} was answered {status}"
        self.settle(payload, status)

    def agrees(self, stored):
        """Whether what is upstream is what was accepted last, or may have been."""
        return stored == self.last or any(stored == p for p in self.unsure)


def grown(before, after, margin):
    """What there is more of than ever before, by name: (then, now). Figures are dicts of the same
    names, before is a list of them; margin: what may come on top, by name."""
    most = {name: max(figures[name] for figures in before) for name in after}
    return {name: (most[name], now) for name, now in after.items()
            if now > most[name] + margin.get(name, 0)}  # fmt: skip


def work(vms, rng, until, errors):
    """Lets VMs act, any of them that nobody else has in hand, until that time."""
    while time.monotonic() < until and not errors:
        vm = rng.choice(vms)
        if not vm.lock.acquire(blocking=False):
            continue
        try:
            vm.act()
        except (ConnectionError, FileNotFoundError):
            time.sleep(0.05)  # nobody listens just now
        except Exception as e:  # noqa: BLE001: shown by the main thread
            errors.append(e)
        finally:
            vm.lock.release()


def run_round(vms, rng, seconds, workers, disturb):
    """One round of workers, and of disturb(rng, until), which runs beside them. Raises what one of
    them has met."""
    errors = []
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=work, args=(vms, random.Random(rng.random()), until, errors))
               for _ in range(workers)]  # fmt: skip

    def disturber():
        try:
            disturb(random.Random(rng.random()), until)
        except Exception as e:  # noqa: BLE001
            errors.append(e)

    threads.append(threading.Thread(target=disturber))
    for t in threads:
        t.start()
    for t in threads:
        t.join(seconds + 180)
        assert not t.is_alive(), "a sender hangs"
    if errors:
        raise errors[0]
