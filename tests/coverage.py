#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Which branches of a build with COV=1 its tests run: core and edges (tests/coverage.conf).

    tests/coverage.py BUILD [--keep] [--suites NAME,NAME]     --keep: add to what an earlier run counted

Runs the unit tests and the suites of the daemon on this machine, and beside them suites in virtual
machines, where there are vsock, BPF and other kernels. What the programs count in there is carried
out and added. Prints a line per file and one per group, and fails if a test does or a group is below
its bound. The same as pages in BUILD/html.
"""

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"
SUITES = {
    "unit": ["tests/unit"],
    "host": [PYTHON, "tests/host/run.py"],
    "daemon": [PYTHON, "tests/host/cli.py"],
    "ctl": [PYTHON, "tests/host/ctl.py"],
    "spool": [PYTHON, "tests/host/spool.py"],
    "agent": [PYTHON, "tests/host/agent.py"],
    "upstream": [PYTHON, "tests/host/upstream.py"],
    "faults": [PYTHON, "tests/host/faults.py"],
}
# In VMs: a script that boots one, the kernel, the rest as in tests/suites.conf.
VMS = {
    "vm": ["tests/vm/suite.sh", "6.12", "--worlds", "rules,loopback,vhost,netns,doctor"],
    # A load of a thousand reports proves nothing about branches, and takes a build at -O0 for ever.
    "vm-trace": ["tests/vm/trace.sh", "6.12", "--without", "thousand_reports"],
    "vm-netns": ["tests/vm/suite.sh", "unstable", "--worlds", "netns"],
}
HOST_AT_ONCE = 2
VMS_AT_ONCE = 1
LIMIT_S = 1500
# What the core does not call: files, sockets, processes, clocks, and the libraries that do.
SYSTEM = re.compile(
    r"(?:open(?:at|64)?|f?read|p?write|p?read(?:64)?|writev|readv|send(?:msg|to)?|recv(?:msg|from)?"
    r"|socket|bind|listen|connect|accept4?|p?poll|epoll\w*|ioctl|fopen|opendir|fdopendir|readdir"
    r"|unlink(?:at)?|mkdir(?:at)?|rename(?:at)?|f?stat(?:at)?|lstat|getenv|clock_gettime|time|fork"
    r"|exec\w+|kill|getrandom|fsync|close|u?sleep|nanosleep|pthread_create|syscall|prctl"
    r"|(?:sd|MHD|SSL|ares|bpf|cap|seccomp)_\w+)"
)
OURS = {"bpf_why", "bpf_fail", "bpf_heard", "bpf_hear_begin", "bpf_hear_end"}


def counts_of(build, name):
    """Where the counts of a VM go, in folders as below the build."""
    return build / "gcov" / name


def command_of(build, name):
    if name in VMS:
        script, kernel, *rest = VMS[name]
        return [script, kernel, str(LIMIT_S - 20), *rest]
    return [*SUITES[name], str(build)] if name == "unit" else SUITES[name]


def run_suite(build, name):
    """Runs a suite of instrumented programs; its failed tests."""
    log = build / "logs" / f"coverage-{name}.log"
    log.parent.mkdir(exist_ok=True)
    env = {**os.environ, "B": str(build), "VSR_BUILD": str(build), "VSR_COVERAGE": "1",
           "COUNT": str(counts_of(build, name))}  # fmt: skip
    start = time.monotonic()
    with open(log, "w", encoding="utf-8") as f:
        try:
            status = subprocess.run(command_of(build, name), cwd=TOP, env=env, stdout=f,
                                    stderr=subprocess.STDOUT, timeout=LIMIT_S,
                                    check=False).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            status = f"none after {LIMIT_S} s"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    failed = [line for line in lines if line.startswith("not ok")]
    skipped = [line for line in lines if line.startswith("ok") and re.search("# *skip", line, re.I)]
    passed = sum(line.startswith("ok") for line in lines) - len(skipped)
    if status != 0 and not failed:
        failed.append(f"not ok - exit status {status}")
    if name in VMS and not any(counts_of(build, name).rglob("*.gcda")):
        failed.append("not ok - no counts came out of the VM")
    print(f"{name}: {passed} passed, {len(failed)} failed, {len(skipped)} skipped, "
          f"{time.monotonic() - start:.0f} s (see {log})", flush=True)  # fmt: skip
    for line in skipped:
        print(f"{name}: {line}", flush=True)
    return [f"{name}: {line}" for line in failed]


def run_all(build, names):
    """Suites of this machine and of VMs beside each other; their failed tests."""
    with ThreadPoolExecutor(HOST_AT_ONCE) as host, ThreadPoolExecutor(VMS_AT_ONCE) as vms:
        runs = [(vms if name in VMS else host).submit(run_suite, build, name) for name in names]
    return [line for run in runs for line in run.result()]


def add_counts(build, name):
    """Adds what the programs in a VM have counted to what those of this machine have."""
    with tempfile.TemporaryDirectory(dir=build) as merged:
        subprocess.run(["gcov-tool", "merge", "-o", merged, build / "obj",
                        counts_of(build, name) / "obj"], check=True)  # fmt: skip
        for file in Path(merged).rglob("*.gcda"):
            shutil.copyfile(file, build / "obj" / file.relative_to(merged))


def groups():
    """[(group, percent, pattern)] in the order of the file: the first that fits decides."""
    rows = []
    for line in (TOP / "tests/coverage.conf").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if words and not words[0].startswith("#"):
            rows += [(words[0], float(words[1]), pattern) for pattern in words[2:]]
    return rows


def fits(file, pattern):
    return file.count("/") == pattern.count("/") and fnmatch.fnmatchcase(file, pattern)


def impure(build, rows):
    """Files that are said to be core and call the system."""
    problems = []
    for group, _, pattern in rows:
        if group != "core" or not pattern.endswith(".c"):
            continue
        files = sorted(TOP.glob(pattern))
        if not files:
            problems.append(f"{pattern}: no such file (tests/coverage.conf)")
        for file in files:
            obj = build / "obj" / file.relative_to(TOP).with_suffix(".o")
            names = subprocess.run(["nm", "-u", obj], capture_output=True, text=True,
                                   check=True).stdout.split()  # fmt: skip
            calls = {n for n in names if SYSTEM.fullmatch(n)} - OURS
            if calls:
                problems.append(f"{pattern} is said to be core and calls {', '.join(sorted(calls))}")
    return problems


def count(build):
    """{file: (branches taken, branches)}"""
    out = build / "coverage.json"
    html = build / "html"
    html.mkdir(exist_ok=True)
    subprocess.run(
        ["gcovr", "--root", str(TOP), "--object-directory", str(build), "--filter", "user/",
         "--filter", "include/", "--filter", "bpf/", "--exclude-unreachable-branches",
         # Of an assertion one branch ends the test program.
         "--exclude-branches-by-pattern", r"^\s*assert\(.*",
         "--json", str(out), "--html-details", str(html / "index.html"), str(build / "obj")],
        cwd=TOP, check=True,
    )  # fmt: skip
    counts = {}
    for file in json.loads(out.read_text(encoding="utf-8"))["files"]:
        branches = [b["count"] > 0 for line in file["lines"] for b in line["branches"]]
        counts[file["file"]] = (sum(branches), len(branches))
    return counts


def show(rows, counts):
    """Prints the figures; what is below its bound."""
    total, bounds, problems = {}, {}, []
    for file, (taken, all_of_them) in sorted(counts.items()):
        found = next(((g, p) for g, p, pattern in rows if fits(file, pattern)), None)
        if not found:
            problems.append(f"{file}: in no group (tests/coverage.conf)")
            continue
        group, bounds[group] = found
        before = total.get(group, (0, 0))
        total[group] = (before[0] + taken, before[1] + all_of_them)
        if all_of_them:
            print(f"{group:5} {file:32} {taken:5} of {all_of_them:5} {100 * taken / all_of_them:6.1f} %")
    for group, (taken, all_of_them) in total.items():
        percent = 100 * taken / all_of_them
        print(f"{group}: {taken} of {all_of_them} branches, {percent:.1f} % (bound {bounds[group]:g} %)")
        if percent < bounds[group]:
            problems.append(f"{group}: {percent:.1f} % of branches are below {bounds[group]:g} %")
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build", type=Path)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--suites", default=",".join([*VMS, *SUITES]))
    args = parser.parse_args()
    build = args.build.resolve()
    # The daemon counts as the service user, beside processes of root.
    os.umask(0)
    if not args.keep:
        for file in build.rglob("*.gcda"):
            file.unlink()
    for path in [build / "obj", *(build / "obj").rglob("*")]:
        if path.is_dir() or path.suffix == ".gcda":
            path.chmod(0o777 if path.is_dir() else 0o666)
    names = [name for name in args.suites.split(",") if name]
    shutil.rmtree(build / "gcov", ignore_errors=True)
    problems = run_all(build, names)
    for name in names:
        if name in VMS and counts_of(build, name).exists():
            add_counts(build, name)
    rows = groups()
    problems += impure(build, rows)
    problems += show(rows, count(build))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
