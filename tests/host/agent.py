#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""vsock-agent on this machine, against a relay's hybrid socket and sockets that are no relay."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

from relay import BUILD, Relay
from tap import Tap

AGENT = os.path.join(BUILD, "vsock-agent")
CID = 42
OK, USAGE, REFUSED, NO_INPUT, OUTPUT, TEMPORARY, PROTOCOL = 0, 64, 65, 66, 74, 75, 76

STATUS = """Package: bash
Status: install ok installed
Version: 5.2-1
Architecture: amd64

Package: damaged
Status: install ok installed
"""


def agent(*args, stdout=subprocess.PIPE, seconds=60):
    """Exit status, standard output, standard error."""
    done = subprocess.run([AGENT, *args], stdin=subprocess.DEVNULL, stdout=stdout,
                          stderr=subprocess.PIPE, timeout=seconds, check=False)  # fmt: skip
    return (done.returncode, (done.stdout or b"").decode(errors="replace"),
            done.stderr.decode(errors="replace"))  # fmt: skip


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def machine(root, status=STATUS):
    """The files of a Debian machine."""
    write(f"{root}/var/lib/dpkg/status", status)
    write(f"{root}/etc/os-release", 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n')
    write(f"{root}/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    write(f"{root}/etc/apt/sources.list", "deb http://deb.example/debian bookworm main\n")


def machine_with_rpm(root):
    """The files of a Red Hat machine; what says its packages, in the place of rpm."""
    write(f"{root}/etc/os-release", "ID=rhel\nVERSION_ID=9.4\n")
    write(f"{root}/var/lib/rpm/rpmdb.sqlite", "")
    write(f"{root}/usr/bin/rpm", "")
    program = f"{root}/good"
    write(program, '#!/bin/sh\nprintf "kernel\\t0\\t5.14\\t1.el9\\tx86_64\\tk.src.rpm\\n"\n')
    os.chmod(program, 0o755)
    return program


def relay(**settings):
    return Relay({"admission": {"grant_rate": 0}, **settings}, hybrid={"vm.sock": CID})


def send(r, *args, cid=CID):
    return agent("--once", "--start-within", "0", "--cid", str(cid), "--unix", r.path("vm.sock"),
                 *args)  # fmt: skip


def options_are_checked():
    """Help and version say so and end; a bad option is 64 and named."""
    status, out, _ = agent("--help")
    assert status == OK and "--start-within" in out
    status, out, _ = agent("--version")
    assert status == OK and out.startswith("vsock-agent "), out
    for args in (["--port", "x"], ["--port", "99999999999"], ["--retries", "-1"],
                 ["--timeout", "soon"], ["--timeout", "0"], ["--interval", "0"], ["--mode", "vsr3"],
                 ["--file", "/a", "--synthetic", "1"], ["--unix", "/a"], ["--root", "relative"],
                 ["--cid", "0x2"], ["--host-cid", ""], ["--seed", "-"], ["more"], ["--no-such"],
                 ["--start-within", "-1s"], ["--vm-id"]):  # fmt: skip
        status, out, err = agent(*args)
        assert status == USAGE and err and not out, (args, status, err)
    with open("/dev/full", "w", encoding="ascii") as full:
        assert agent("--help", stdout=full)[0] == OUTPUT


def reports_in_each_mode(scratch):
    """What dpkg lists arrives, in each mode; the same again is nothing to do, and 0 too."""
    machine(scratch)
    with relay() as r:
        for mode in ("vsr2", "vsr1", "raw", "vsr2"):
            status, _, err = send(r, "--root", scratch, "--mode", mode, "--verbose")
            assert status == OK, err
            assert "damaged entries" in err and "1 packages" in err, err
        r.wait_metric("contents_ended_total", "acked", value=1)
        (name,) = os.listdir(r.stored_dir)
        with open(os.path.join(r.stored_dir, name), "rb") as f:
            stored = f.read()
        for text in (b"bash", b"5.2-1", b"debian", b"deb.example", b"0123456789abcdef"):
            assert text in stored, text
        r.check()


def inventories_from_rpm(scratch):
    """rpm's lines are taken from the program that is named; one that fails is no inventory."""
    good = machine_with_rpm(scratch)
    bad = f"{scratch}/bad"
    write(bad, "#!/bin/sh\necho no database >&2\nexit 1\n")
    os.chmod(bad, 0o755)
    for program in (good, bad, f"{scratch}/none"):
        status, out, err = agent("--print", "--cid", "3", "--root", scratch, "--verbose",
                                 "--rpm-command", program)  # fmt: skip
        assert status in (OK, NO_INPUT), (program, status, err)
        assert status == NO_INPUT or "detected os    RHEL" in out, out
        assert program == good or err, program


def shows_instead_of_sending(scratch):
    """--print and --dump, of a machine, a file, an invention; what cannot be written is 74."""
    machine(scratch)
    dump = f"{scratch}/report"
    status, out, err = agent("--print", "--dump", dump, "--root", scratch, "--cid", "7",
                             "--vm-id", "me")  # fmt: skip
    assert status == OK, err
    assert "bash" in out and "vm id          me" in out and "cid            7" in out, out
    status, again, _ = agent("--print", "--file", dump)
    assert status == OK and again == out
    status, out, _ = agent("--print", "--synthetic", "5", "--seed", "2", "--cid", "7")
    assert status == OK and "packages       5" in out, out
    assert agent("--dump", "-", "--synthetic", "1", "--cid", "7")[0] == OK
    assert agent("--dump", "/dev/full", "--synthetic", "1", "--cid", "7")[0] == OUTPUT
    assert agent("--dump", f"{scratch}/none/x", "--synthetic", "1", "--cid", "7")[0] == OUTPUT
    with open("/dev/full", "w", encoding="ascii") as full:
        assert agent("--print", "--file", dump, stdout=full)[0] == OUTPUT
        assert agent("--dump", "-", "--file", dump, stdout=full)[0] == OUTPUT
    write(f"{scratch}/text", "this is no report\n")
    assert agent("--print", "--file", f"{scratch}/text")[0] == NO_INPUT


def nothing_to_report_is_66(scratch):
    """No database, an empty one, no file, one too long, an id too long: each is named."""
    for args in (["--root", scratch], ["--root", f"{scratch}/none"], ["--file", "/none"],
                 ["--file", scratch], ["--vm-id", "x" * 5000, "--synthetic", "1"]):  # fmt: skip
        status, _, err = agent("--print", "--cid", "7", *args)
        assert status == NO_INPUT and err, (args, status, err)
    machine(scratch, status="")
    status, _, err = agent("--print", "--cid", "7", "--root", scratch)
    assert status == NO_INPUT and "no package" in err, err
    long = f"{scratch}/long"
    with open(long, "wb") as f:
        f.truncate(100 << 20)
    status, _, err = agent("--dump", "-", "--file", long)
    assert status == NO_INPUT and "longer than" in err, err


def refusals_have_their_codes(scratch):
    """Another CID is 65; nobody there is 75 after its attempts; what is no relay is 76."""
    with relay() as r:
        status, _, err = send(r, "--synthetic", "1", cid=43)
        assert status == REFUSED and "answer 5" in err, err
        r.check()
    path = f"{scratch}/s"
    args = ["--once", "--start-within", "0", "--cid", "3", "--synthetic", "1", "--unix", path]
    status, _, err = agent(*args, "--retries", "0")
    assert status == TEMPORARY and "attempts: 1" in err, err
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        s.listen(8)
        answers = [b"HTTP/1.0 400 Bad", b"", b"VSA1"]

        def serve():
            for answer in answers:
                c, _ = s.accept()
                with c:
                    c.recv(16)
                    if answer:
                        c.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert agent(*args, "--retries", "0")[0] == PROTOCOL
        for _ in range(2):
            assert agent(*args, "--retries", "0")[0] == TEMPORARY
        thread.join(10)
        # Nobody accepts, and nobody answers.
        status, _, err = agent(*args, "--retries", "1", "--timeout", "300ms")
        assert status == TEMPORARY and "trying again in" in err and "attempts: 2" in err, err


def runs_until_it_is_stopped(scratch):
    """Without --once it reports again and again; SIGTERM ends it well, also while it waits."""
    machine(scratch)
    with relay() as r:
        process = subprocess.Popen(
            [AGENT, "--start-within", "0", "--interval", "1s", "--cid", str(CID), "--unix",
             r.path("vm.sock"), "--root", scratch], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        r.wait_metric("connections_accepted_total", at_least=3, seconds=20)
        process.send_signal(signal.SIGTERM)
        err = process.communicate(timeout=20)[1]
        assert process.returncode == OK and "stopped by a signal" in err, err
        r.check()
    # Nobody is there: it is stopped while it waits for the next attempt.
    process = subprocess.Popen(
        [AGENT, "--once", "--start-within", "0", "--cid", "3", "--unix", f"{scratch}/none",
         "--synthetic", "1", "--retries", "9"], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == TEMPORARY, process.returncode


def main():
    tap = Tap(only=sys.argv[1] if len(sys.argv) > 1 else None)
    for test in (options_are_checked, reports_in_each_mode, inventories_from_rpm,
                 shows_instead_of_sending, nothing_to_report_is_66, refusals_have_their_codes,
                 runs_until_it_is_stopped):  # fmt: skip
        name = f"{test.__name__}: {test.__doc__}"
        if test is options_are_checked:
            tap.run(name, test)
            continue
        with tempfile.TemporaryDirectory(prefix="vsr-agent.") as scratch:
            os.chmod(scratch, 0o755)
            tap.run(name, test, scratch)
    tap.end()


if __name__ == "__main__":
    main()
