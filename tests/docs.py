#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Holds the documentation against the code: every refusal, metric and map that the pages must explain
is explained, every setting, test and file that they name is there. Prints TAP."""

import os
import re
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests/lib"))

from tap import Tap

PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]


def text(path):
    return (TOP / path).read_text(encoding="utf-8")


def missing(names, page):
    shown = text(page)
    return sorted(name for name in names if not re.search(rf"`(\w+, )*{name}[`{{]", shown))


def reasons():
    """Every reason of user/reason.h has its row, with the answer that the code gives."""
    found = re.findall(
        r'X\([A-Z_]+,\s*"([a-z_]+)",\s*VSR_STATUS_([A-Z_]+),\s*(true|false)', text("user/reason.h")
    )
    status = {"BUSY": 2, "TOO_LARGE": 3, "MALFORMED": 4, "CID_MISMATCH": 5, "DIGEST_MISMATCH": 6,
              "INTERNAL": 7, "REFUSED": 8, "DEADLINE": 9}  # fmt: skip
    assert len(found) > 20, found
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*)$", text("docs/operating.md"), re.MULTILINE))
    for name, answer, offence in found:
        assert name in rows, f"{name} has no row"
        cells = [cell.strip() for cell in rows[name].split("|")]
        # Who is refused before his turn gets none, or 2 on a hybrid socket.
        assert cells[0] in ("none", "none, hybrid 2", str(status[answer])), (name, cells[0])
        assert (cells[1] == "yes") == (offence == "true"), (name, cells[1])


def metrics():
    """Every metric of user/metrics.h is explained in docs/operating.md."""
    header = text("user/metrics.h")
    names = re.findall(r'X\([A-Z_]+, (?:COUNTER|GAUGE|GAUGE_COUNTER), "([^"=]+)"', header)
    names += re.findall(r'X\([A-Z_]+, "([a-z_]+_seconds)"', header)
    assert len(names) > 40, names
    left_out = missing(names, "docs/operating.md")
    assert not left_out, left_out


def alerts():
    """Every alert of scripts/deploy/prometheus-rules.yaml is explained in docs/operating.md, and no other."""
    there = set(re.findall(r"- alert: (\w+)", text("scripts/deploy/prometheus-rules.yaml")))
    shown = set(re.findall(r"^\| `(VsockRelay\w+)`", text("docs/operating.md"), re.MULTILINE))
    assert there and there == shown, there ^ shown


def maps():
    """Every map, and every field of the maps that people read, is explained in docs/maps.md."""
    abi = text("include/vsr_abi.h")
    names = re.findall(r"^/\* (vsr_\w+):", abi, re.MULTILINE)
    for struct in ("vsr_vm_seen", "vsr_vm_state", "vsr_conn"):
        body = re.search(rf"struct {struct} {{(.*?)\n}};", abi, re.DOTALL).group(1)
        body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
        names += re.findall(r"(\w+)(?:\[\w+\])?;", body)
    assert len(names) > 30, names
    left_out = missing(names, "docs/maps.md")
    assert not left_out, left_out


def settings_named():
    """A setting that a page names exists."""
    keys = set(re.findall(r"^\| `([a-z_.]+)` \|", text("docs/settings.md"), re.MULTILINE))
    sections = {key.split(".")[0] for key in keys if "." in key}
    for page in PAGES:
        for name in re.findall(r"`((?:\w+\.)+\w+)(?::[^`]*)?`", page.read_text(encoding="utf-8")):
            if name.split(".")[0] in sections and not re.search(r"\.(c|h|py|sh|md|yaml)$", name):
                assert name in keys or any(k.startswith(name + ".") for k in keys), (page.name, name)


def tests_named():
    """Tests that docs/security.md, docs/delivery.md and docs/design.md name exist."""
    modules = {path.stem.removeprefix("test_"): path for path in (TOP / "tests").rglob("test_*.c")}
    modules["hostile"] = TOP / "tests/lib/hostile.py"
    modules["scenarios"] = TOP / "tests/lib/scenarios.py"
    modules["kernel-facts"] = TOP / "tests/vm/kernel_facts.py"
    modules["ctl"] = TOP / "tests/host/ctl.py"
    modules["host-spool"] = TOP / "tests/host/spool.py"
    modules["node"] = TOP / "tests/deploy/node.py"
    modules["netns"] = TOP / "tests/lib/netns.py"
    modules["soak"] = TOP / "tests/vm/soak.py"
    modules["vsock"] = TOP / "tests/lib/vsockrules.py"
    checked = 0
    for page in ("docs/security.md", "docs/delivery.md", "docs/design.md"):
        for module, names in re.findall(r"([\w-]+) ((?:`[\w*]+`(?:,\s+)?)+)", text(page)):
            if module not in modules:
                continue
            code = text(modules[module])
            for name, star in re.findall(r"`(\w+)(\*?)`", names):
                assert re.search(rf"\b{name}" + ("" if star else r"\b"), code), (page, module, name)
                checked += 1
    table = text("docs/delivery.md").split("## Which test shows it")[1]
    for name in re.findall(r"`(\w+)`", "".join(re.findall(r"^\| .*$", table, re.MULTILINE))):
        assert f"def {name}(" in text("tests/lib/scenarios.py"), name
        checked += 1
    assert checked > 60, checked


def links():
    """Every link to a file leads somewhere, and every heading that it names is there."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            path, _, heading = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if heading:
                slugs = [re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-")
                         for h in re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.M)]  # fmt: skip
                assert heading in slugs, f"{page.name}: {target}"


def probes():
    """docs/tracing.md has an example for each probe of the daemon, with as many arguments."""
    defined = re.findall(r"DTRACE_PROBE(\d)\(vsock_relay, (\w+),", text("user/usdt.h"))
    assert len(defined) == 7, defined
    page = text("docs/tracing.md")
    for count, name in defined:
        example = re.search(rf"^# bpftrace -e 'usdt:[^:]*:vsock_relay:{name} (.*)'$", page, re.M)
        assert example, name
        arguments = {int(n) for n in re.findall(r"arg(\d)", example.group(1))}
        assert arguments == set(range(int(count))), (name, arguments)


def files_named():
    """Files of this repository that a page names exist."""
    pattern = r"`((?:user|bpf|include|tests|scripts|docs)/[\w./-]+\.(?:c|h|py|sh|md|proto|yaml))`"
    for page in PAGES:
        for name in re.findall(pattern, page.read_text(encoding="utf-8")):
            assert os.path.exists(TOP / name), f"{page.name}: {name}"


def tour():
    """The tour in the README passes every file of the daemon."""
    shown = text("README.md")
    for path in sorted((TOP / "user").glob("*.c")):
        assert f"`{path.name}`" in shown, path.name


def main():
    tap = Tap()
    for test in (reasons, metrics, alerts, maps, settings_named, tests_named, links, probes, files_named, tour):
        tap.run(f"{test.__name__}: {' '.join(test.__doc__.split())}", test)
    tap.end()


main()
