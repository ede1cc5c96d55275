#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The container image: scripts/deploy/Containerfile built from a clean clone by buildah, whose isolation
"chroot" needs no container runtime, on a base that is made from Debian's packages and so comes from no
registry; then the relay in it serves a report. As root. Prints TAP.

The base is kept in the cache. VSR_MIRROR names another mirror than deb.debian.org; VSR_TMP another place than
/var/tmp, with 6 GB of room."""

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TOP / "tests" / folder) for folder in ("lib", "deploy")]

import manifests
import report as rp
import yaml
from relay import wait_for
from tap import Skip, Tap

CACHE = Path(os.environ.get("VSR_CACHE", TOP / "build/cache"))
MIRROR = os.environ.get("VSR_MIRROR", "http://deb.debian.org/debian")
SECURITY = "http://deb.debian.org/debian-security"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
BASE = "docker.io/library/debian:bookworm-slim"  # as the Containerfile has it
IMAGE = "localhost/vsock-relay:test"
CID = 42
# What the DaemonSet mounts from the node, and a socket in place of a vsock.
SETTINGS = {"listen": {"vsock": False}, "bpf": "off", "metrics": {"listen": ""},
            "hybrid": {"sockets": [{"path": "/run/vms/vm.sock", "cid": CID}]}}  # fmt: skip


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], check=False, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, **options)  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout.strip()


class Builder:
    """buildah with a storage of its own: nothing of this machine's images is used or changed."""

    def __init__(self, folder):
        self.folder = folder
        self.options = ["--root", f"{folder}/store", "--runroot", f"{folder}/run", "--storage-driver", "vfs"]

    def __call__(self, *words, **options):
        return run("buildah", *self.options, *words, **options)

    def start(self, container, *words):
        command = ["buildah", *self.options, "run", "--isolation", "chroot", container, "--", *words]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def base(builder):
    """An image as small as bookworm-slim, under its name: then nothing is pulled."""
    sources = "".join(f"deb [signed-by={KEYS}] {url} {suite} main\n" for url, suite in
                      ((MIRROR, "bookworm"), (SECURITY, "bookworm-security")))  # fmt: skip
    key = hashlib.sha256(sources.encode()).hexdigest()[:12]
    tree = CACHE / f"base-{key}.tar"
    if not tree.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = CACHE / f"base-{key}.{os.getpid()}.tar"
        run("mmdebstrap", "--quiet", "--variant=minbase", "bookworm", made, "-", input=sources)
        made.rename(tree)
    container = builder("from", "scratch")
    builder("add", "--quiet", container, tree, "/")
    builder("commit", "--quiet", "--rm", container, BASE)


def containerfile_builds(builder):
    with tempfile.TemporaryDirectory(dir=builder.folder) as clone:
        run("git", "clone", "-q", f"file://{TOP}", clone)
        builder("build", "--isolation", "chroot", "--pull-never", "--tag", IMAGE,
                "--file", "scripts/deploy/Containerfile", ".", cwd=clone)  # fmt: skip


def has_what_the_manifest_names(builder):
    config = json.loads(builder("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    assert config["Entrypoint"] == ["/usr/sbin/vsock-relayd"] and not config.get("Cmd"), config
    container = builder("from", "--pull-never", IMAGE)
    inside = lambda *words: builder("run", "--isolation", "chroot", container, "--", *words)  # noqa: E731
    user = yaml.safe_load(manifests.settings())["user"]
    assert inside("id", "-u", "vsock-relay") == inside("id", "-g", "vsock-relay") == user
    versions = {inside(f"vsock-{name}", "--version").split()[1].rstrip(",") for name in ("relayd", "relayctl")}
    assert len(versions) == 1, versions
    assert "0 problems" in inside("sh", "-c", "apt-get check >&2 && dpkg --audit && echo 0 problems")
    # Nothing of the build stage has come along.
    assert inside("sh", "-c", "ls -d /src /usr/bin/gcc /usr/bin/clang /tmp/*.deb 2>/dev/null || :") == ""
    builder("rm", container)


def serves_a_report(builder):
    """The relay in the image, with the manifest's settings but for what a node would have."""
    container = builder("from", "--pull-never", IMAGE)
    root = Path(builder("mount", container))
    settings = {**yaml.safe_load(manifests.settings()), **SETTINGS}
    (root / "etc/vsock-relay/test.yaml").write_text(yaml.safe_dump(settings), encoding="ascii")
    user = int(settings["user"])
    for folder in ("run/vms", "var/lib/vsock-relay"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        os.chown(root / folder, user, user)
    daemon = builder.start(container, "/usr/sbin/vsock-relayd", "--config", "/etc/vsock-relay/test.yaml")
    # Paths of storage are longer than a socket's may be.
    back = os.getcwd()
    os.chdir(root / "run/vms")
    try:
        wait_for(lambda: daemon.poll() is not None or os.path.exists("vm.sock_818"), 60, "the relay listens")
        assert daemon.poll() is None, daemon.stderr.read()
        payload = rp.report(CID, packages=20)
        assert rp.send_framed("vm.sock_818", payload) == rp.ACCEPTED
        stored = root / f"var/lib/vsock-relay/reports/0-{CID}.pb"
        wait_for(stored.exists, 30, "report is stored")
        assert stored.read_bytes() == payload and stored.stat().st_uid == user
        pid = descendant(daemon.pid, "vsock-relayd")
        fields = (Path("/proc") / str(pid) / "status").read_text()
        assert f"\nUid:\t{user}\t{user}\t{user}\t{user}\n" in fields, fields
        os.kill(pid, signal.SIGTERM)
        assert daemon.wait(60) == 0, daemon.stderr.read()
    finally:
        os.chdir(back)
        if daemon.poll() is None:
            with contextlib.suppress(StopIteration):
                os.kill(descendant(daemon.pid, "vsock-relayd"), signal.SIGKILL)
            daemon.kill()
        daemon.wait()
        builder("umount", container)
        builder("rm", container)


def descendant(ancestor, name):
    """The process of that name below another one; StopIteration: there is none."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ends
            pid, comm, parent = re.match(r"(\d+) \((.*)\) \S+ (\d+)", path.read_text()).groups()
            parents[int(pid)], names[int(pid)] = int(parent), comm

    def below(pid):
        return pid == ancestor or (pid in parents and below(parents[pid]))

    return next(pid for pid in names if names[pid] == name and below(pid))


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tap = Tap()
    if os.getuid() != 0:

        def not_root():
            raise Skip("needs root")

        tap.run("container image", not_root)
        tap.end()
    with tempfile.TemporaryDirectory(dir=os.environ.get("VSR_TMP", "/var/tmp"), prefix="vsr-image.") as folder:
        builder = Builder(folder)
        for name, test in (
            ("a base image from Debian's packages", base),
            ("the Containerfile builds, from a clean clone", containerfile_builds),
            ("the image has what the manifest names, and no more", has_what_the_manifest_names),
            ("the relay in it serves a report as its user", serves_a_report),
        ):
            tap.run(name, test, builder)
            if tap.failed:
                break
    tap.end()


main()
