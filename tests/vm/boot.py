#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Boots a Debian kernel in QEMU, runs one command in it, returns the command's exit status.

    tests/vm/boot.py --kernel 6.12 --modules loopback --bin build/vsock-relayd \\
        --add tests/vm/inside.py:/tests/inside.py -- python3 /tests/inside.py

The machine has an initramfs made here: busybox, Debian's Python with the part of its library that
test scripts use, bpftool, the wanted modules, and what is given with --add and --bin (a program
brings its libraries along). The command's output is the VM's virtio console and so this program's
standard output; the kernel's own messages go to a serial line, which is shown when something went
wrong. Whoever boots often imports this file instead: see Vm.

With --guest-command a second VM is prepared that the command starts inside the first one with
/guest/start: a real guest whose kernel sends through virtio-vsock to the vhost-vsock of the first.

Exit status: the command's; 124 if time ran out; 125 if the VM came to no proper end or its kernel
complained (WARNING, BUG, Oops).
"""

import argparse
import contextlib
import ctypes
import dataclasses
import hashlib
import json
import lzma
import os
import py_compile
import re
import resource
import secrets
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve()
# In the node of a nested pair this file is /guest/boot.py, and there is no tree around it.
TOP = HERE.parents[2] if len(HERE.parents) > 2 else HERE.parent
CACHE = Path(os.environ.get("VSR_CACHE", TOP / "build" / "cache"))

STATUS_TIMEOUT = 124
STATUS_BROKEN = 125

# What each set of modules is for; dependencies are found in the modules themselves.
MODULE_SETS = {
    "none": [],
    "loopback": ["vsock_loopback", "vsock_diag", "unix_diag"],
    "vhost": ["vsock_loopback", "vsock_diag", "unix_diag", "vhost_vsock"],
    "guest": ["vmw_vsock_virtio_transport"],
}

# Lines of the kernel's log that make a run fail whatever the command said.
KERNEL_COMPLAINTS = (
    r"WARNING: |BUG: |BUG at |Oops|general protection fault|refcount_t: |UBSAN: |KASAN: |"
    r"list_(add|del) corruption|blocked for more than|Kernel panic|unregister_netdevice: waiting"
)

# apparmor and audit only cost start-up time; under TCG on a busy machine the clock and the lockup
# watchdogs would complain about the emulator, not about us.
KERNEL_ARGUMENTS = (
    "panic=-1 quiet console=ttyS0 rdinit=/init tsc=reliable no_timer_check "
    "clocksource=tsc apparmor=0 audit=0 watchdog_thresh=60 rcupdate.rcu_cpu_stall_timeout=120"
)

# A guest inside a VM boots fifty times slower: without the start-up work that no vsock guest needs
# (self-tests and certificates of the crypto code, tables for tracing and BPF) it takes two thirds.
GUEST_ARGUMENTS = (
    "mitigations=off init_on_alloc=0 ipv6.disable=1 "
    "initcall_blacklist=jent_mod_init,load_system_certificate_list,init_encrypted,"
    "crypto_algapi_init,crypto_kdf108_init,trace_eval_init,bpf_tcp_ca_kfunc_init,"
    "bpf_dummy_struct_ops_init,param_sysfs_builtin_init,slab_late_init"
)

# Its clock counts instructions (32 ns each) while it works, real time while it waits. On real time
# alone the timer's interrupts, due every 4 ms, would take most of so slow a processor.
GUEST_CLOCK = ["-icount", "shift=5,sleep=on"]

INIT = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /out /root /var/lib /var/log
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs dev /dev
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8
/bin/busybox --install -s /bin
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t bpf bpffs /sys/fs/bpf
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ip link set lo up
hostname vm
for module in /lib/modules/[0-9]*.ko; do
    [ -e "$module" ] && insmod "$module"
done
for i in 1 2 3 4 5 6 7 8 9 10; do
    stty -opost 2>/dev/null </dev/hvc0 && break
    sleep 0.1
done
exec </dev/null >/dev/hvc0 2>&1
read -r cmdline </proc/cmdline
nonce=${cmdline##*vsr.nonce=}
nonce=${nonce%% *}
cd /root
/etc/vsr/command
status=$?
if [ -n "$(ls -A /out)" ]; then
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = files ] && tar -c -C /out . >"/dev/${port##*/}"
    done
fi
complaints=0
if dmesg | grep -qE "$(cat /etc/vsr/complaints)"; then
    complaints=1
    dmesg | grep -m1 -A40 -E "$(cat /etc/vsr/complaints)" | sed 's/^/kernel: /'
fi
echo "vsr-exit $nonce $status $complaints"
poweroff -f
"""

PASSWD = """root:x:0:0:root:/root:/bin/sh
vsock-relay:x:818:818:vsock-relay:/nonexistent:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""
GROUP = "root:x:0:\nvsock-relay:x:818:\nnogroup:x:65534:\n"

# Of Debian's Python: not what is for developing or drawing, and no TLS.
PYTHON_WITHOUT = {
    "test", "idlelib", "lib2to3", "tkinter", "turtledemo", "ensurepip", "distutils", "pydoc_data",
    "__pycache__", "dbm", "sqlite3", "curses", "wsgiref", "xmlrpc", "venv", "lib-dynload",
    "config-3.11-x86_64-linux-gnu", "__phello__", "turtle.py", "pydoc.py", "sitecustomize.py",
    "antigravity.py", "this.py",
}  # fmt: skip
PYTHON_EXTENSIONS = {
    "_asyncio", "_bz2", "_contextvars", "_ctypes", "_decimal", "_hashlib", "_json", "_lzma",
    "_multiprocessing", "_posixshmem", "_queue", "_typing", "_uuid", "mmap", "resource", "termios",
}  # fmt: skip

QEMU = "/usr/bin/qemu-system-x86_64"
QEMU_PARTS = ["/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so",
              "/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/pvh.bin",
              "/usr/share/qemu/kvmvapic.bin"]  # fmt: skip


class BootError(Exception):
    """Something that is not the command's fault: no such file, no such module, no QEMU."""


# ---- kernels ---------------------------------------------------------------------------------


class Kernel:
    """An unpacked Debian kernel and its modules."""

    def __init__(self, name):
        fetch = subprocess.run(
            [TOP / "scripts" / "fetch-kernel", name], stdout=subprocess.PIPE, text=True, check=False
        )
        if fetch.returncode != 0:
            raise BootError(f"kernel {name} is not to be had")
        self.name = name
        self.dir = Path(fetch.stdout.strip())
        self.image = self.dir / "vmlinux"
        self._paths = {}
        for folder, _, files in os.walk(self.dir / "modules"):
            for file in files:
                if ".ko" in file:
                    self._paths[_module_name(file)] = Path(folder, file)

    def modules(self, names):
        """(name, content) of the modules and of all that they need, in the order of loading."""
        loaded = {}

        def load(name):
            if name in loaded:
                return
            if name not in self._paths:
                # Built in, or not in this kernel; a set must suit old kernels too.
                return
            content = _decompressed(self._paths[name])
            found = re.search(rb"\0depends=([^\0]*)\0", content)
            for needed in (found.group(1).decode() if found else "").split(","):
                if needed:
                    load(_module_name(needed))
            loaded[name] = content

        for name in names:
            load(_module_name(name))
        return list(loaded.items())


def _unsigned(module):
    """Without the signature at its end (struct module_signature in the kernel's module_signature.h):
    twelve bytes, the last four its length, and a magic behind it."""
    magic = b"~Module signature appended~\n"
    if not module.endswith(magic):
        return module
    rest = module[: -len(magic)]
    return rest[: -12 - int.from_bytes(rest[-4:], "big")]


def _module_name(file):
    return file.split(".ko", 1)[0].replace("-", "_")


def _decompressed(path):
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    if path.suffix == ".zst":
        return subprocess.run(["zstd", "-dcq", path], stdout=subprocess.PIPE, check=True).stdout
    return path.read_bytes()


# ---- initramfs -------------------------------------------------------------------------------


class Image:
    """The files of an initramfs. Written only when what goes into it has changed."""

    def __init__(self):
        self._entries = {}  # destination -> (mode, mtime, source path or bytes)

    def text(self, dest, content, mode=0o644):
        data = content.encode() if isinstance(content, str) else content
        self._put(dest, stat.S_IFREG | mode, 0, data)

    def link(self, dest, target):
        self._put(dest, stat.S_IFLNK | 0o777, 0, target.encode())

    def add(self, source, dest=None):
        """A file, with its libraries if it is a program, or a folder with all that is in it."""
        source = Path(source)
        dest = str(dest or source.absolute())
        if source.is_dir():
            for folder, dirs, files in os.walk(source):
                dirs[:] = [d for d in dirs if d not in ("__pycache__", ".git")]
                inside = os.path.relpath(folder, source)
                for file in files:
                    self.add(Path(folder, file), os.path.normpath(os.path.join(dest, inside, file)))
        elif source.is_file():
            self._file(source, dest)
            for library in _libraries(source):
                self._file(Path(library), library)
        else:
            raise BootError(f"{source}: no such file or folder")

    def add_python(self):
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.add(f"/usr/bin/{version}", "/usr/bin/python3")
        self.link(f"/usr/bin/{version}", "python3")
        library = Path("/usr/lib", version)
        self.add(_compiled_library(library), library)
        for extension in (library / "lib-dynload").iterdir():
            if extension.name.split(".")[0] in PYTHON_EXTENSIONS:
                self.add(extension)

    def write(self):
        """The path of the cpio archive in the cache."""
        key = hashlib.sha256()
        for dest, (mode, mtime, source) in sorted(self._entries.items()):
            if isinstance(source, Path):
                found = source.stat()
                source_key = f"{source}|{found.st_size}|{found.st_mtime_ns}"
            else:
                source_key = hashlib.sha256(source).hexdigest()
            key.update(f"{dest}|{mode}|{source_key}\n".encode())
        folder = CACHE / "initramfs"
        path = folder / f"{key.hexdigest()[:20]}.cpio"
        if path.exists():
            os.utime(path)
            return path
        folder.mkdir(parents=True, exist_ok=True)
        _forget_old(folder)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as out:
            inode = 0
            for dest, (mode, mtime, source) in sorted(self._entries.items()):
                inode += 1
                data = source.read_bytes() if isinstance(source, Path) else source
                _cpio_entry(out, inode, dest, mode, mtime, data)
            _cpio_entry(out, 0, "TRAILER!!!", 0, 0, b"")
        os.rename(out.name, path)
        return path

    def _file(self, source, dest):
        source = source.resolve()
        found = source.stat()
        self._put(dest, stat.S_IFREG | (found.st_mode & 0o777), int(found.st_mtime), source)

    def _put(self, dest, mode, mtime, source):
        dest = os.path.normpath(str(dest)).lstrip("/")
        parent = os.path.dirname(dest)
        while parent and parent not in self._entries:
            self._entries[parent] = (stat.S_IFDIR | 0o755, 0, b"")
            parent = os.path.dirname(parent)
        self._entries[dest] = (mode, mtime, source)


def _cpio_entry(out, inode, name, mode, mtime, data):
    """One record of the "newc" format (Documentation/driver-api/early-userspace/buffer-format)."""
    raw = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, mtime, len(data), 0, 0, 0, 0, len(raw), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    out.write(header + raw + b"\0" * (-(len(header) + len(raw)) % 4))
    out.write(data)
    out.write(b"\0" * (-len(data) % 4))


def _forget_old(folder):
    """Archives that no run can still be reading: all but the newest eight, older than an hour. Another
    boot may be doing the same."""
    archives = []
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            archives.append((path.stat().st_mtime, path))
    for changed, path in sorted(archives, reverse=True)[8:]:
        if changed < time.time() - 3600:
            path.unlink(missing_ok=True)


def _libraries(program):
    """Absolute paths of the shared libraries that a dynamic program or library needs."""
    with open(program, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return []
    ldd = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
    # A module of QEMU leaves symbols to the program that loads it; only missing files count.
    if re.search(r"=> not found", ldd.stdout):
        raise BootError(f"{program}: a library is missing:\n{ldd.stdout}")
    return re.findall(r"(/[^ ]+) \(0x", ldd.stdout)


def _compiled_library(library):
    """Python's library as bytecode only: under TCG compiling it would take longer than the boot."""
    stamp = hashlib.sha256(f"{sys.version}{sorted(PYTHON_WITHOUT)}".encode()).hexdigest()[:12]
    compiled = CACHE / f"python-{stamp}"
    if compiled.exists():
        return compiled
    CACHE.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=CACHE, prefix="python."))
    for folder, dirs, files in os.walk(library):
        dirs[:] = [d for d in dirs if d not in PYTHON_WITHOUT]
        inside = os.path.relpath(folder, library)
        for file in files:
            if not file.endswith(".py") or file in PYTHON_WITHOUT or "sysconfigdata" in file:
                continue
            source = os.path.join(folder, file)
            target = work / inside / (file + "c")
            target.parent.mkdir(parents=True, exist_ok=True)
            py_compile.compile(
                source,
                cfile=str(target),
                doraise=True,
                invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
            )
    try:
        work.rename(compiled)
    except OSError:
        shutil.rmtree(work)  # another run was first
    return compiled


# ---- QEMU ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Machine:
    """What QEMU needs to boot: all of it can be written down, so that a VM can start another."""

    kernel: str
    initrd: str
    memory: int  # MiB
    cpus: int
    accel: str
    devices: list
    arguments: str = KERNEL_ARGUMENTS

    def launch(self, timeout, emit, out_dir=None, quiet_failure=False):
        """Boots, passes each line of output to emit(), returns the exit status."""
        nonce = secrets.token_hex(8)
        with tempfile.TemporaryDirectory(prefix="vsr-vm.") as scratch:
            log = Path(scratch, "kernel.log")
            files = Path(scratch, "out.tar")
            process = subprocess.Popen(
                self._command(log, files, nonce),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            )
            expired = threading.Event()

            def expire():
                expired.set()
                process.kill()

            timer = threading.Timer(timeout, expire)
            timer.start()
            try:
                end = _follow(process.stdout, nonce, emit)
                process.wait()
            finally:
                timer.cancel()
                process.kill()
                process.wait()
                process.stdout.close()
            if end is None and not quiet_failure:
                for line in _tail(log, 40):
                    emit(f"kernel: {line}")
            if expired.is_set() and end is None:
                emit(f"# the VM was killed after {timeout:g} s")
                return STATUS_TIMEOUT
            if end is None:
                if not quiet_failure:
                    emit(f"# the VM came to no proper end (QEMU: {process.returncode})")
                return STATUS_BROKEN
            if out_dir is not None and files.exists() and files.stat().st_size > 0:
                Path(out_dir).mkdir(parents=True, exist_ok=True)
                subprocess.run(["tar", "-x", "-f", files, "-C", out_dir], check=True)
            status, complaints = end
            if complaints:
                emit("# the VM's kernel complained")
                return STATUS_BROKEN
            return status

    def _command(self, log, files, nonce):
        # Without cmpxchg16b: TCG of QEMU 7.2 leaves garbage in the flags behind it, and an interrupt
        # that comes there pushes them. Rare, but a VM inside a VM is slow enough to die of it.
        thread = "multi" if self.cpus > 1 else "single"
        cpu = {"tcg": ["-accel", f"tcg,thread={thread}", "-cpu", "max,cx16=off"],
               "kvm": ["-accel", "kvm", "-cpu", "host"]}[self.accel]  # fmt: skip
        return [
            QEMU, "-M", "q35", "-nodefaults", *cpu, "-smp", str(self.cpus), "-m", str(self.memory),
            "-display", "none", "-monitor", "none", "-no-reboot",
            "-kernel", self.kernel, "-initrd", self.initrd,
            "-append", f"{self.arguments} vsr.nonce={nonce}",
            "-serial", f"file:{log}",
            "-chardev", "stdio,id=console,signal=off",
            "-chardev", f"file,id=files,path={files}",
            "-device", "virtio-serial-pci",
            "-device", "virtconsole,chardev=console",
            "-device", "virtserialport,chardev=files,name=files",
            *self.devices,
        ]  # fmt: skip


def _die_with_parent():
    """Runs in the child: no QEMU outlives this program, however it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _follow(stream, nonce, emit):
    """Passes lines on until the last one; returns (status, complaints) or None."""
    marker = re.compile(rf"vsr-exit {nonce} (\d+) ([01])$")
    end = None
    for raw in iter(stream.readline, b""):
        line = raw.decode(errors="replace").rstrip("\r\n")
        found = marker.search(line)
        if found:
            end = int(found.group(1)), found.group(2) == "1"
            line = line[: found.start()]
        if line or not found:
            emit(line)
    return end


def _tail(path, count):
    try:
        return path.read_text(errors="replace").replace("\r", "").splitlines()[-count:]
    except FileNotFoundError:
        return []


def accelerator():
    """"kvm" if a stock kernel boots with it here, else "tcg". Tried once, then remembered."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    cached = CACHE / "accel.json"
    host = os.uname().release
    try:
        known = json.loads(cached.read_text())
        if known["host"] == host:
            return known["accel"]
    except (OSError, ValueError, KeyError):
        pass
    trial = Vm(modules="none", memory=512, cpus=1, python=False, accel="kvm")
    status = trial.run(["true"], timeout=20, emit=lambda line: None, quiet_failure=True)
    accel = "kvm" if status == 0 else "tcg"
    cached.write_text(json.dumps({"host": host, "accel": accel}) + "\n")
    return accel


# ---- a VM ------------------------------------------------------------------------------------


class Vm:
    """
    One VM for one command.

        vm = Vm(kernel="6.12", modules="loopback")
        vm.add_bin("build/vsock-relayd")
        vm.add("tests/vm/inside.py", "/tests/inside.py")
        status = vm.run(["python3", "/tests/inside.py"], timeout=300)
    """

    def __init__(self, kernel="6.12", modules="loopback", memory=2048, cpus=2, python=True,
                 accel=None, signed=True):  # fmt: skip
        self.kernel = Kernel(kernel)
        self.memory = memory
        self.cpus = cpus
        self.accel = accel
        self._first = ""  # lines of shell before the command
        self.image = Image()
        self.image.text("/init", INIT, 0o755)
        self.image.text("/etc/passwd", PASSWD)
        self.image.text("/etc/group", GROUP)
        self.image.text("/etc/hosts", "127.0.0.1 localhost vm\n::1 localhost\n")
        self.image.text("/etc/vsr/complaints", KERNEL_COMPLAINTS)
        self.image.add("/etc/os-release")
        self.image.add("/bin/busybox", "/bin/busybox")
        # The console; built into newer kernels.
        names = ["virtio_pci", "virtio_console"]
        names += [name for part in modules.split(",") for name in MODULE_SETS.get(part, [part])]
        for number, (name, content) in enumerate(self.kernel.modules(names)):
            content = content if signed else _unsigned(content)
            self.image.text(f"/lib/modules/{number:02}-{name}.ko", content)
        if python:
            self.image.add_python()
            self.image.add("/usr/sbin/bpftool")

    def add(self, source, dest=None):
        """A file or folder, at the same place in the VM unless dest is given."""
        self.image.add(source, dest)

    def add_bin(self, source, dest=None):
        """A program, as /usr/bin/NAME unless dest is given, with the libraries it needs."""
        self.image.add(source, dest or f"/usr/bin/{Path(source).name}")

    def add_guest(self, guest, command, cid=42):
        """
        Lets the command start `guest`, another Vm, whose kernel is a real vsock guest with that
        CID: /guest/start [SECONDS] boots it, prints its output and exits as its command does.
        """
        machine = guest.prepare(command)
        self.image.add(machine.kernel, "/guest/vmlinux")
        self.image.add(machine.initrd, "/guest/initrd")
        machine.kernel, machine.initrd, machine.accel = "/guest/vmlinux", "/guest/initrd", "tcg"
        machine.arguments += " " + GUEST_ARGUMENTS
        machine.cpus = 1
        machine.devices += ["-device", f"vhost-vsock-pci,guest-cid={cid}", *GUEST_CLOCK]
        self.image.text("/guest/machine.json", json.dumps(dataclasses.asdict(machine)))
        self.image.add(HERE, "/guest/boot.py")
        start = '#!/bin/sh\nexec python3 /guest/boot.py --prepared /guest/machine.json "$@"\n'
        self.image.text("/guest/start", start, 0o755)
        for file in [QEMU, *QEMU_PARTS]:
            self.image.add(file)

    def count(self, build):
        """
        For programs of a build with COV=1: what they write down of themselves, also as the service
        user, goes to /out and so to out_dir, in folders as below `build`.
        """
        build = Path(build).resolve()
        folders = sorted({f"/out/{path.parent.relative_to(build)}" for path in build.rglob("*.gcno")})
        self._first = (f"umask 0\nmkdir -p {shlex.join([str(build.parent), *folders])}\n"
                       f"ln -s /out {shlex.quote(str(build))}\n")  # fmt: skip

    def prepare(self, command, env=None):
        """Writes the initramfs; the Machine can then be launched."""
        script = self._first
        script += "".join(f"export {shlex.quote(f'{k}={v}')}\n" for k, v in (env or {}).items())
        script += f"export VSR_KERNEL={self.kernel.name}\n"
        self.image.text("/etc/vsr/command", f"#!/bin/sh\n{script}exec {shlex.join(command)}\n", 0o755)
        return Machine(
            kernel=str(self.kernel.image),
            initrd=str(self.image.write()),
            memory=self.memory,
            cpus=self.cpus,
            accel=self.accel or accelerator(),
            devices=[],
        )

    def run(self, command, timeout, emit=None, env=None, out_dir=None, quiet_failure=False):
        """Boots, runs, returns the exit status (see the top of this file)."""
        machine = self.prepare(command, env)
        return machine.launch(timeout, emit or _print, out_dir, quiet_failure)


def _print(line):
    print(line, flush=True)


def _split(argument):
    source, _, dest = argument.partition(":")
    return source, dest or None


def main():
    # So that a kill of this program still cleans up behind itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kernel", default="6.12", help="6.12 (default), 6.12-full, 6.1, unstable")
    parser.add_argument("--modules", default="loopback",
                        help=f"sets ({', '.join(MODULE_SETS)}) or modules, with commas")  # fmt: skip
    parser.add_argument("--add", action="append", default=[], metavar="PATH[:DEST]")
    parser.add_argument("--bin", action="append", default=[], metavar="PATH[:DEST]")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--memory", type=int, metavar="MIB", help="2048, with a guest 4096")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS")
    parser.add_argument("--out", metavar="DIR", help="where to put what the command left in /out")
    parser.add_argument("--gcov", metavar="BUILD",
                        help="programs are of this build with COV=1; what they count goes to --out")  # fmt: skip
    parser.add_argument("--guest-command", metavar="SHELL", help="prepare /guest/start")
    parser.add_argument("--guest-kernel", default="6.12")
    parser.add_argument("--guest-add", action="append", default=[], metavar="PATH[:DEST]")
    parser.add_argument("--guest-bin", action="append", default=[], metavar="PATH[:DEST]")
    parser.add_argument("--guest-cid", type=int, default=42)
    parser.add_argument("--guest-memory", type=int, default=512)
    parser.add_argument("--prepared", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="+", help="with --prepared: the seconds it may take")
    options = parser.parse_args()

    if options.prepared:
        with open(options.prepared, encoding="utf-8") as file:
            machine = Machine(**json.load(file))
        return machine.launch(float(options.command[0]), _print)

    memory = options.memory or (4096 if options.guest_command else 2048)
    vm = Vm(options.kernel, options.modules, memory, options.cpus)
    if options.gcov:
        vm.count(options.gcov)
    for argument in options.add:
        vm.add(*_split(argument))
    for argument in options.bin:
        vm.add_bin(*_split(argument))
    if options.guest_command:
        # It has no key for its modules: their signatures would only be read.
        guest = Vm(options.guest_kernel, "guest", options.guest_memory, cpus=1, python=False,
                   signed=False)  # fmt: skip
        for argument in options.guest_add:
            guest.add(*_split(argument))
        for argument in options.guest_bin:
            guest.add_bin(*_split(argument))
        vm.add_guest(guest, ["sh", "-c", options.guest_command], options.guest_cid)
    env = dict(pair.split("=", 1) for pair in options.env)
    return vm.run(options.command, options.timeout, env=env, out_dir=options.out)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BootError as error:
        print(f"boot.py: {error}", file=sys.stderr)
        sys.exit(STATUS_BROKEN)
