# SPDX-License-Identifier: Apache-2.0
"""A gRPC upstream for tests: both services of include/sensor, made with python3-grpcio and generic
handlers, so that every byte is seen as it came. What it does with a call is scripted."""

import concurrent.futures
import os
import queue
import subprocess
import threading
import time

import grpc
import report as rp

UPSERT = "UpsertVirtualMachineIndexReport"
OPTIONS = [
    ("grpc.max_receive_message_length", 24 << 20),
    ("grpc.so_reuseport", 0),
    # Pings as often as the reference's server allows.
    ("grpc.http2.min_ping_interval_without_data_ms", 5000),
    ("grpc.keepalive_permit_without_calls", 1),
]
SUCCESS, NO_SUCCESS = b"\x08\x01", b""
ACK, NACK = 0, 1
NODE_INVENTORY, NODE_INDEX_REPORT, VM_INDEX_REPORT = range(3)


def compliance_ack(resource, action=ACK, kind=VM_INDEX_REPORT, reason=""):
    body = b""
    for number, value in ((1, action), (2, kind)):
        if value:
            body += rp.varint(number << 3) + rp.varint(value)
    for number, text in ((3, resource), (4, reason)):
        if text:
            body += rp.field(number, text)
    return rp.field(5, body)


def read_varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def fields(data):
    """The length-delimited fields of a message by number."""
    at, found = 0, {}
    while at < len(data):
        key, at = read_varint(data, at)
        if key & 7 == 2:
            size, at = read_varint(data, at)
            found[key >> 3] = data[at : at + size]
            at += size
        else:
            _, at = read_varint(data, at)
    return found


def cid_of(payload):
    return int(fields(fields(payload)[1])[1])


class Call:
    """One call as it came in."""

    def __init__(self, cid, payload, metadata, peer):
        self.at = time.monotonic()
        self.cid, self.payload, self.metadata, self.peer = cid, payload, metadata, peer


# ---- what a call may do: f(server, call, context) returns the response's bytes ----


def succeed(server, call, context):
    return SUCCESS


def acknowledge(server, call, context):
    """Success, and the ACK on the stream."""
    server.ack(f"vm:{call.cid}")
    return SUCCESS


def no_success(server, call, context):
    return NO_SUCCESS


def fail(code, text="scripted"):
    def action(server, call, context):
        context.abort(code, text)

    return action


def delay(seconds, then=succeed):
    def action(server, call, context):
        server.stopping.wait(seconds)
        return then(server, call, context)

    return action


def hang(server, call, context):
    """No answer, as long as the caller waits for one."""
    ended = threading.Event()
    context.add_callback(ended.set)
    while not ended.wait(0.05) and not server.stopping.is_set():
        pass
    return SUCCESS


class Server:
    """actions: what the first calls do, in order; then `default`. With keep=False payloads are
    only counted."""

    running = {}  # by address

    def __init__(self, default=acknowledge, actions=(), address="127.0.0.1:0", credentials=None,
                 keep=True):  # fmt: skip
        self.default, self.actions = default, list(actions)
        self.credentials, self.keep = credentials, keep
        self.lock = threading.Lock()
        self.calls, self.streams = [], []
        self.stream_metadata = []
        self.stream_messages = 0
        self.stream_actions = []
        self.address = address
        self.server = None
        self.stopping = threading.Event()
        self.start()

    def start(self):
        self.stopping.clear()
        self.server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(max_workers=24), options=OPTIONS
        )
        self.server.add_generic_rpc_handlers((
            grpc.method_handlers_generic_handler(
                "sensor.VirtualMachineIndexReportService",
                {UPSERT: grpc.unary_unary_rpc_method_handler(self._upsert)},
            ),
            grpc.method_handlers_generic_handler(
                "sensor.ComplianceService",
                {"Communicate": grpc.stream_stream_rpc_method_handler(self._communicate)},
            ),
        ))
        if self.credentials:
            port = self.server.add_secure_port(self.address, self.credentials)
        else:
            port = self.server.add_insecure_port(self.address)
        if not self.address.startswith("unix:"):
            self.port = port
            self.address = f"{self.address.rsplit(':', 1)[0]}:{port}"
        self.server.start()
        self.running[self.address] = self

    def stop(self, grace=0):
        """GOAWAY; calls under way may take `grace` seconds to end."""
        self.running.pop(self.address, None)
        stopped = self.server.stop(grace or None)
        if not grace:
            self.stopping.set()
        for q in list(self.streams):
            q.put(None)
        stopped.wait(20)
        self.stopping.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    # ---- the services ----

    def _upsert(self, payload, context):
        call = Call(cid_of(payload), payload if self.keep else len(payload),
                    dict(context.invocation_metadata()), context.peer())  # fmt: skip
        with self.lock:
            self.calls.append(call)
            action = self.actions.pop(0) if self.actions else self.default
        return action(self, call, context)

    def _communicate(self, requests, context):
        mine = queue.Queue()
        with self.lock:
            self.stream_metadata.append(dict(context.invocation_metadata()))
            action = self.stream_actions.pop(0) if self.stream_actions else None
        if action:
            action(self, None, context)
        # The reference sends a configuration first.
        mine.put(rp.field(1, b"\x08\x01"))
        with self.lock:
            self.streams.append(mine)
        context.add_callback(lambda: mine.put(None))
        try:
            while True:
                message = mine.get()
                if message is None:
                    return
                if isinstance(message, grpc.StatusCode):
                    context.abort(message, "scripted")
                yield message
        finally:
            with self.lock:
                self.streams.remove(mine)

    # ---- what a test says and asks ----

    def ack(self, resource, **keys):
        self.say(compliance_ack(resource, **keys))

    def say(self, message):
        """To every stream that is open; a status code ends it."""
        with self.lock:
            for q in self.streams:
                q.put(message)

    def of(self, cid):
        with self.lock:
            return [c for c in self.calls if c.cid == cid]

    def payloads(self, cid):
        return [c.payload for c in self.of(cid)]


# ---- certificates ----


def openssl(*args, stdin=None):
    done = subprocess.run(["openssl", *args], input=stdin, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {args}: {done.stderr.decode()}")


class Authority:
    """A CA of its own in a directory, and certificates from it."""

    def __init__(self, directory, name="ca"):
        os.makedirs(directory, exist_ok=True)
        self.dir = directory
        self.key, self.cert = self.path(name + ".key"), self.path(name + ".pem")
        openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                "-nodes", "-keyout", self.key, "-out", self.cert, "-days", "2",
                "-subj", f"/CN={name}")  # fmt: skip

    def path(self, name):
        return os.path.join(self.dir, name)

    def issue(self, name, san, days=2):
        """Returns (certificate, key); days may be in the past."""
        key, csr, cert, ext = (self.path(name + e) for e in (".key", ".csr", ".pem", ".ext"))
        openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                "-keyout", key, "-out", csr, "-subj", f"/CN={name}")  # fmt: skip
        os.chmod(key, 0o644)  # the relay is not who runs the test
        with open(ext, "w", encoding="ascii") as f:
            f.write(f"subjectAltName={san}\n")
        openssl("x509", "-req", "-in", csr, "-CA", self.cert, "-CAkey", self.key,
                "-CAcreateserial", "-days", str(days), "-extfile", ext, "-out", cert)  # fmt: skip
        return cert, key


def read(path):
    with open(path, "rb") as f:
        return f.read()


def server_credentials(pair, ca=None):
    """ca: clients need a certificate from it."""
    cert, key = pair
    return grpc.ssl_server_credentials(
        [(read(key), read(cert))], read(ca) if ca else None, require_client_auth=bool(ca)
    )
