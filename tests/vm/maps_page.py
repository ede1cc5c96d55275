#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""docs/maps.md against a VM: boots one in which the relay and three guests do what the page says, runs
each command of the page there, and compares what it prints: names, order, sizes and form of every line;
numbers and times may differ. Prints TAP.

    tests/vm/maps_page.py BUILD           the comparison
    tests/vm/maps_page.py BUILD --write   puts the text of this run into the page, where it had such a line

Where the page has "..." lines are left out; they stay left out. A text that no longer fits is written
whole, for somebody to shorten."""

import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(HERE, "..", "lib")]

from tap import Tap

PAGE = os.path.join(TOP, "docs/maps.md")
BLOCK = re.compile(r"^```\n# (.*)\n((?:.*\n)*?)```$", re.M)
SAID = "maps-page: "
ELIDED = "..."
TIMEOUT = 170


# ---- in the VM ----


def play():
    """What the page says that had happened. Returns what has to stay as it is meanwhile."""
    import report as rp
    from fakeguest import FakeGuest
    from relay import Relay, wait_for

    relay, fg = Relay({"report": {"deadline": "5m", "idle": "5m"}}), FakeGuest()
    for cid in (42, 43, 44):
        fg.guest(cid)
    fg.bridge(42, 818, "/tmp/42")
    first, second = rp.report(42, 593826, seed=1), rp.report(42, 574758, seed=2)
    for payload, answer in ((first, rp.ACCEPTED), (second, rp.ACCEPTED), (second, rp.NOTHING_TO_DO)):
        status, _ = rp.send_offer("/tmp/42", payload)
        assert status == answer, status
        relay.wait_stored(42, payload)
    conn = fg.connect(43, 818)
    fg.wait(conn, "credit")
    # The verdict is shown the empty packet in place of the full one. (A small one would be merged.)
    fg.rw(conn, len=0, desc=65536)
    fg.rw(conn, len=5000)
    wait_for(lambda: relay.refused().get("zero_length"), 20, "the packet is refused")
    payload = rp.report(44, 100000)
    conn = fg.connect(44, 818)
    fg.wait(conn, "credit")
    fg.send(conn, (rp.header(payload) + payload)[:70016])
    relay.wait_metric("sem_holding_size", value=1)
    return relay, fg


def inside(commands):
    _world = play()
    for command in json.loads(commands):
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
        print(f"{SAID}{json.dumps([command, done.returncode, done.stdout])}", flush=True)
    print(f"{SAID}{json.dumps(['uname', 0, os.uname().release])}", flush=True)


# ---- on the host ----


def form(line):
    """The line without what differs from run to run."""
    line = re.sub(r"\b(tag )[0-9a-f]{16}\b", r"\1TAG", line)
    line = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+\d{4}", "TIME", line)
    line = re.sub(r"\b[A-Z][a-z]{2} +\d+ +\d\d:\d\d\b", "TIME", line)
    line = re.sub(r"\b(map_ids )[\d,]+", r"\1IDS", line)
    # What a layout consists of stays.
    return re.sub(r"(?<![\w=])\d+(?=\D|$)", "N", line)


def pattern(shown):
    """What output has to match, with a group for each part that is shown."""
    parts = [[]]
    for line in shown.splitlines():
        if line == ELIDED:
            parts.append([])
        else:
            parts[-1].append(re.escape(form(line)) + "\n")
    groups = ["({})".format("".join(part)) for part in parts]
    return re.compile(r"(?:.*\n)*?".join(groups) + r"\Z" if parts[-1] else r"(?:.*\n)*?".join(groups))


def fits(shown, output):
    """The text for the page, in the form that it has there; None: it has another form."""
    found = pattern(shown).match("".join(form(line) + "\n" for line in output.splitlines()))
    if not found:
        return None
    lines = output.splitlines()
    texts = []
    for i in range(1, found.re.groups + 1):
        begin = found.string.count("\n", 0, found.start(i))
        end = found.string.count("\n", 0, found.end(i))
        texts.append("".join(line + "\n" for line in lines[begin:end]))
    return f"{ELIDED}\n".join(texts)


def run_vm(build, commands):
    command = [os.path.join(HERE, "boot.py"), "--kernel", "6.12", "--modules", "vhost", "--timeout", str(TIMEOUT),
               "--bin", f"{build}/vsock-relayd:/build/vsock-relayd",
               "--bin", f"{build}/tests/vm/fakeguest:/usr/bin/fakeguest",
               "--add", f"{TOP}/tests/lib:/tests/lib", "--add", f"{__file__}:/tests/vm/maps_page.py",
               "--env", "VSR_BUILD=/build",
               "--", "/usr/bin/python3", "/tests/vm/maps_page.py", "--inside", json.dumps(commands)]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    said = [json.loads(line.removeprefix(SAID)) for line in done.stdout.splitlines() if line.startswith(SAID)]
    assert done.returncode == 0, done.stdout[-6000:]
    return {name: (status, output) for name, status, output in said}


def compare(command, shown, said):
    status, output = said
    assert status == 0, (command, status, output)
    assert fits(shown, output) is not None, f"the page has\n{shown}\nthe VM says\n{output}"


def rewrite(page, said):
    def block(found):
        command, shown = found.groups()
        output = said[command][1]
        return f"```\n# {command}\n{fits(shown, output) or output}```"

    page = BLOCK.sub(block, page)
    return re.sub(r"(came from a VM with Linux\s+)\S+", rf"\g<1>{said['uname'][1]}", page)


def main():
    if sys.argv[1] == "--inside":
        inside(sys.argv[2])
        return
    with open(PAGE, encoding="utf-8") as f:
        page = f.read()
    blocks = BLOCK.findall(page)
    tap, said = Tap(), {}
    tap.run("maps.md: its commands run in a VM",
            lambda: said.update(run_vm(os.path.abspath(sys.argv[1]), [c for c, _ in blocks])))  # fmt: skip
    if not tap.failed:
        if "--write" in sys.argv:
            with open(PAGE, "w", encoding="utf-8") as f:
                f.write(rewrite(page, said))
        for command, shown in blocks:
            tap.run(f"maps.md: {command[:70]}", compare, command, shown, said[command])
    tap.end()


main()
