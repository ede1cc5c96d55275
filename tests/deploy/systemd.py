#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The packages on a node with systemd: a VM with Debian 12 from its packages (kept in the cache) and
the 6.12 kernel, in which node.py installs, breaks, upgrades and purges them. Argument: the build's
folder; --quick leaves out what takes minutes; --netns runs what needs a kernel with vsock namespaces,
on one that has them. Prints TAP."""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests" / folder) for folder in ("vm", "lib", "deploy")]

import boot
import manifests

TIMEOUT = 1680
NEWER = "9.0.0"  # the package that is upgraded to
SIZE = "1500M"
# Beside what our packages depend on.
PACKAGES = {"systemd-sysv", "python3", "bpftool", "curl", "iproute2", "procps"}
MIRROR = os.environ.get("VSR_MIRROR", "http://deb.debian.org/debian")
SECURITY = "http://deb.debian.org/debian-security"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Ours are no boot scripts of the image: it is the same for every run, and this goes into its /run.
INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /node
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
for module in /lib/modules/[0-9]*.ko; do
    insmod "$module"
done
mount -t ext4 /dev/vda /node || poweroff -f
mount -t tmpfs -o mode=755 run /node/run
cp -a /payload /node/run/vsr
mkdir -p /node/run/systemd/system/multi-user.target.wants
cp /etc/vsr/vsr-test.service /node/run/systemd/system/
ln -s ../vsr-test.service /node/run/systemd/system/multi-user.target.wants/
cp /etc/vsr/complaints /etc/vsr/command /etc/vsr/run /node/run/vsr/
mount -t devtmpfs dev /node/dev
umount /proc
exec switch_root /node /lib/systemd/systemd
"""

UNIT = """[Unit]
Description=The tests
[Service]
ExecStart=/bin/sh /run/vsr/run
StandardInput=null
StandardOutput=tty
StandardError=inherit
TTYPath=/dev/hvc0
KillMode=process
"""

RUN = """stty -opost </dev/hvc0
read -r cmdline </proc/cmdline
nonce=${cmdline##*vsr.nonce=}
nonce=${nonce%% *}
/run/vsr/command
status=$?
complaints=0
if dmesg | grep -qE "$(cat /run/vsr/complaints)"; then
    complaints=1
    dmesg | grep -m1 -A40 -E "$(cat /run/vsr/complaints)" | sed 's/^/kernel: /'
fi
echo "vsr-exit $nonce $status $complaints"
poweroff -f
"""


def run(*command, **options):
    return subprocess.run([str(c) for c in command], check=True, **options)


def packages(build, version):
    """The paths of the packages of that build, by name."""
    made = run(TOP / "scripts/deb", build, version, stdout=subprocess.PIPE, text=True).stdout.split()
    return {Path(path).name.split("_")[0]: Path(path) for path in made}


def newer(build):
    """The same source as another version."""
    run("make", "-C", TOP, f"-j{os.cpu_count()}", f"B={build}", f"VERSION={NEWER}", "all",
        stdout=subprocess.DEVNULL)  # fmt: skip
    return packages(build, NEWER)


def dependencies(debs):
    """Names of the packages that ours need, the first of alternatives, without each other."""
    wanted = set(PACKAGES)
    for deb in debs.values():
        shown = run("dpkg-deb", "-f", deb, "Depends", stdout=subprocess.PIPE, text=True).stdout
        wanted |= {re.match(r"[\w.+-]+", part.strip()).group() for part in shown.split(",") if part.strip()}
    return sorted(wanted - set(debs))


def image(wanted):
    """A file system with Debian 12 and these packages; made once."""
    sources = "".join(
        f"deb [signed-by={KEYS}] {url} {suite} main\n"
        for url, suite in ((MIRROR, "bookworm"), (SECURITY, "bookworm-security"))
    )
    key = hashlib.sha256(f"{sources}{wanted}{SIZE}".encode()).hexdigest()[:12]
    path = boot.CACHE / f"systemd-{key}.ext4"
    if path.exists():
        return path
    boot.CACHE.mkdir(parents=True, exist_ok=True)
    print(f"# building {path.name}", flush=True)
    with tempfile.TemporaryDirectory(dir=boot.CACHE, prefix="systemd.") as work:
        root, made = Path(work, "root"), Path(work, "image")
        run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(wanted)}",
            "bookworm", root, "-", input=sources, text=True)  # fmt: skip
        Path(root, "etc/hostname").write_text("node\n", encoding="ascii")
        Path(root, "etc/hosts").write_text("127.0.0.1 localhost node\n", encoding="ascii")
        # As on any machine that has booted once.
        Path(root, "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n", encoding="ascii")
        run("mke2fs", "-q", "-t", "ext4", "-d", root, "-E", "lazy_itable_init=1", made, SIZE)
        made.rename(path)
    for old in boot.CACHE.glob("systemd-*.ext4"):
        if old != path:
            old.unlink()
    return path


def main():
    build, netns = Path(sys.argv[1]).resolve(), "--netns" in sys.argv
    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    version = re.search(r"^VERSION := (\S+)", makefile, re.M).group(1)
    old = packages(build, version)
    new = newer(build / "newer") if not netns else old
    disk = image(dependencies(old))
    vm = boot.Vm(kernel="unstable" if netns else "6.12", modules="vhost,virtio_blk,ext4,crc32c_generic", memory=2048, python=False)
    vm.image.text("/etc/vsr/vsr-test.service", UNIT)
    vm.image.text("/etc/vsr/run", RUN)
    # As in a clone, where docs/operating.md has its commands run.
    for deb in (old["vsock-relay"], old["vsock-agent"], new["vsock-relay"]):
        vm.add(deb, f"/payload/build/{deb.name}")
    for page in ("docs/operating.md", "docs/agent.md", "README.md"):
        vm.add(TOP / page, f"/payload/{Path(page).name}")
    pod = {"capabilities": manifests.capabilities(), "settings": manifests.settings()}
    vm.image.text("/payload/pod.json", json.dumps(pod))
    vm.image.add(TOP / "tests/lib", "/payload/lib")
    vm.image.add(TOP / "tests/deploy/node.py", "/payload/deploy/node.py")
    vm.image.add(build / "tests/vm/fakeguest", "/payload/fakeguest")
    machine = vm.prepare(["/usr/bin/python3", "/run/vsr/deploy/node.py", version, NEWER, *sys.argv[2:]],
                         env={"SYSTEMD_COLORS": "0", "SYSTEMD_URLIFY": "0"})  # fmt: skip
    vm.image.text("/init", INIT, 0o755)
    machine.initrd = str(vm.image.write())
    machine.arguments += " systemd.getty_auto=no systemd.show_status=no"
    machine.devices += ["-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
    return machine.launch(TIMEOUT, lambda line: print(line, flush=True))


sys.exit(main())
