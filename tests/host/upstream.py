#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The grpc upstream against a real server (python3-grpcio) whose faults are scripted: what SPEC 6 to
8 say becomes of a report, one line a fault. Arguments: a part of the tests' names.

The rate limit is off and the first retry comes after BASE, unless a test says otherwise."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))

# Handshakes that fail on purpose are no news.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import grpc
import grpc_server as gs
import report as rp
from relay import Relay, merge, wait_for
from tap import Skip, Tap

BASE = 0.6
VMS = 6
Code = grpc.StatusCode
RETRIED = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED",
           "UNKNOWN", "CANCELLED", "NOT_FOUND", "ALREADY_EXISTS")  # fmt: skip
PAUSED = ("UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED")
DROPPED = ("INVALID_ARGUMENT", "OUT_OF_RANGE", "FAILED_PRECONDITION", "DATA_LOSS")


def settings(address, acks="communicate", **more):
    s = {
        "node_name": "node-1",
        "rate": {"reports_per_minute": 0},
        "retry": {"base": f"{int(BASE * 1000)}ms"},
        "admission": {"grant_rate": 0},
        "shutdown_grace": "2s",
        "upstream": {"kind": "grpc", "grpc": {"address": address, "acks": acks,
                                              "plaintext": True}},
    }  # fmt: skip
    merge(s, more)
    return s


@contextlib.contextmanager
def relay(address, acks="communicate", ready=True, stream=True, wrap=(), **more):
    hybrid = {f"vm{n}.sock": 100 + n for n in range(VMS)}
    with Relay(settings(address, acks, **more), hybrid=hybrid, wrap=wrap) as r:
        if ready:
            r.wait_metric("upstream_ready", value=1)
            server = gs.Server.running.get(address)
            if server and acks == "communicate" and stream:
                # An ACK that is said before goes nowhere.
                wait_for(lambda: server.streams, what="the stream of ACKs")
        yield r
        r.check()


def accept(r, cid=100, seed=0, size=5000, **keys):
    payload = rp.report(cid, size, seed=seed, **keys)
    status = rp.send_framed(r.path(f"vm{cid - 100}.sock"), payload)
    assert status == rp.ACCEPTED, status
    return payload


def ended(r, how, n=1, seconds=20):
    r.wait_metric("contents_ended_total", how, value=n, seconds=seconds)


# ---- statuses ----


def retried(action, seconds=20):
    """Fails the first call; the content goes again after the first step, the same bytes."""
    with gs.Server(actions=[action]) as server, relay(server.address) as r:
        begun = time.monotonic()
        payload = accept(r)
        ended(r, "acked", seconds=seconds)
        assert server.payloads(100) == [payload, payload]
        # The step counts from the send, which the server sees later: how much later is its own.
        second = server.of(100)[1].at
        assert second - begun >= BASE, second - begun
        assert r.metric("index_reports_sent_total", "true") == 1


def paused(code):
    """Nothing more goes out, not of other VMs either, until a reload."""
    with gs.Server(actions=[gs.fail(code)]) as server, relay(server.address) as r:
        accept(r)
        r.wait_metric("upstream_paused", value=1)
        accept(r, 101)
        time.sleep(3 * BASE)
        assert len(server.calls) == 1
        r.reload()
        ended(r, "acked", 2)
        assert r.metric("upstream_paused") == 0


def dropped(code):
    """Three tries, then the content is given up; the next one is not."""
    with gs.Server(actions=[gs.fail(code)] * 3) as server, relay(server.address) as r:
        accept(r)
        ended(r, "rejected")
        assert len(server.calls) == 3
        accept(r, seed=1)
        ended(r, "acked")


def statuses(tap):
    for name in RETRIED:
        tap.run(f"{name}: sent again after a step", retried, gs.fail(Code[name]))
    for name in PAUSED:
        tap.run(f"{name}: the upstream is paused", paused, Code[name])
    for name in DROPPED:
        tap.run(f"{name}: dropped after 3 tries", dropped, Code[name])
    tap.run("success=false: sent again after a step", retried, gs.no_success)


def no_answer():
    start = time.monotonic()
    with gs.Server(actions=[gs.hang]) as server, relay(server.address) as r:
        accept(r)
        r.wait_metric("upstream_rpcs_total", "DEADLINE_EXCEEDED", value=1)
        assert time.monotonic() - start >= 5
        ended(r, "acked")


def slow():
    with gs.Server(actions=[gs.delay(1.5, gs.acknowledge)]) as server, relay(server.address) as r:
        accept(r)
        ended(r, "acked")
        assert len(server.of(100)) <= 2


def response_is_the_ack():
    with gs.Server(default=gs.succeed) as server, relay(server.address, "response") as r:
        payload = accept(r, size=3_000_000)
        ended(r, "acked")
        call = server.of(100)[0]
        assert call.payload == payload
        assert call.metadata["rox-compliance-nodename"] == "node-1", call.metadata
        assert call.metadata["user-agent"].startswith("vsock-relayd/"), call.metadata
        assert not server.stream_metadata


def largest():
    with gs.Server(default=gs.succeed) as server, relay(server.address, "response") as r:
        payload = accept(r, size=rp.LIMIT)
        ended(r, "acked")
        assert server.of(100)[0].payload == payload


# ---- ACKs ----


def ack_before_the_reply():
    def action(server, call, context):
        server.ack(f"vm:{call.cid}")
        time.sleep(0.3)
        return gs.SUCCESS

    with gs.Server(default=action) as server, relay(server.address) as r:
        wait_for(lambda: server.stream_metadata, what="the stream")
        assert server.stream_metadata[0]["rox-compliance-nodename"] == "node-1"
        accept(r)
        ended(r, "acked")
        wait_for(lambda: r.metric("contents_in_flight") == 0, what="the call has ended")
        time.sleep(2 * BASE)
        assert len(server.calls) == 1, "something was left behind"


def ack_late():
    """Until it comes the content is sent again, at 1 and 3 steps."""
    with gs.Server(default=gs.succeed) as server, relay(server.address) as r:
        accept(r)
        wait_for(lambda: len(server.calls) == 3, what="two retries")
        times = [c.at - server.calls[0].at for c in server.calls]
        assert times[1] >= BASE * 0.9 and times[2] >= 3 * BASE * 0.9, times
        server.ack("100")
        ended(r, "acked")
        time.sleep(3.5 * BASE)
        assert len(server.calls) == 3


def acks_of_others():
    """Unknown VMs, other messages and other kinds of ACKs change nothing."""
    with gs.Server(default=gs.succeed) as server, relay(server.address, retry={"base": "1m"}) as r:
        accept(r)
        wait_for(lambda: server.calls, what="the call")
        r.wait_metric("contents_in_flight", value=0)
        for resource in ("vm:999", "", ":100", "vm:100:extra", "0100", "other:100"):
            server.ack(resource)
        server.ack("vm:100", kind=gs.NODE_INVENTORY)
        server.say(rp.field(1, b"\x08\x01"))
        server.say(b"\xff\xff\xff")
        r.wait_metric("acks_received_total", value=6)
        assert r.metric("ack_outcomes_total", "unmatched") == 5
        assert r.metric("ack_outcomes_total", "stale") == 1
        assert r.metric("contents_held") == 1
        server.ack("vm:100")
        ended(r, "acked")


def ack_of_the_older_of_two():
    with gs.Server(default=gs.succeed) as server, relay(server.address, retry={"base": "1m"}) as r:
        accept(r, seed=1)
        wait_for(lambda: len(server.calls) == 1, what="the first")
        r.wait_metric("contents_in_flight", value=0)
        newer = accept(r, seed=2)
        wait_for(lambda: len(server.calls) == 2, what="the second")
        r.wait_metric("contents_in_flight", value=0)
        server.ack("vm:100")
        r.wait_metric("ack_outcomes_total", "settled", value=1)
        assert r.metric("contents_held") == 1
        server.ack("vm:100")
        ended(r, "acked")
        assert server.payloads(100)[1] == newer


def duplicate_ack():
    with gs.Server() as server, relay(server.address) as r:
        accept(r)
        ended(r, "acked")
        server.ack("vm:100")
        r.wait_metric("ack_outcomes_total", "unmatched", value=1)


def nack(reason, permanent):
    def action(server, call, context):
        server.ack(f"vm:{call.cid}", action=gs.NACK, reason=reason)
        return gs.SUCCESS

    with gs.Server(actions=[action]) as server, relay(server.address) as r:
        accept(r)
        ended(r, "nacked" if permanent else "acked")
        assert len(server.calls) == (1 if permanent else 2)
        if reason == "central rate limit exceeded":
            first, second = (c.at for c in server.calls)
            assert second - first >= 2 * BASE * 0.9, second - first


def settable_nacks():
    """retry.permanent_nacks replaces the list, also in a reload."""
    def action(server, call, context):
        server.ack(f"vm:{call.cid}", action=gs.NACK, reason="no such cluster")
        return gs.SUCCESS

    with gs.Server(actions=[action] * 3) as server, \
            relay(server.address, retry={"permanent_nacks": ["no such cluster"]}) as r:  # fmt: skip
        accept(r)
        ended(r, "nacked")
        assert len(server.calls) == 1
        r.config["retry"]["permanent_nacks"] = []
        r.write_config()
        r.reload()
        accept(r, seed=1)
        ended(r, "acked")
        assert len(server.calls) == 4


def acks_by_cid():
    """ack_names: cid takes ACKs of a server that puts something else before the CID."""
    with gs.Server(default=gs.succeed) as server, \
            relay(server.address, upstream={"grpc": {"ack_names": "cid"}}) as r:  # fmt: skip
        accept(r)
        wait_for(lambda: server.calls, what="the call")
        server.ack("cluster-7:100")
        ended(r, "acked")


class Defaults:
    """With the default rate and retries the first retry, due after 30 s, has its token after 60 s.
    It takes its time, so it runs beside the other tests."""

    def __init__(self):
        self.error = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self._look()
        except Exception as e:  # noqa: BLE001: raised by join()
            self.error = e

    @staticmethod
    def _look():
        with gs.Server(actions=[gs.succeed]) as server, relay(server.address) as r:
            del r.config["rate"], r.config["retry"]
            r.write_config()
            assert "reloaded" in r.reload()
            accept(r)
            ended(r, "acked", seconds=90)
            first, second = (c.at for c in server.calls)
            assert 59 <= second - first <= 70, second - first
            assert r.metric("reports_rate_limited_total", "stale_ack") == 1

    def join(self):
        self.thread.join()
        if self.error:
            raise self.error


# ---- the connection ----


def stream_cut():
    """The stream alone ends: a new one is opened, reports go on."""
    with gs.Server() as server, relay(server.address) as r:
        accept(r)
        ended(r, "acked")
        server.say(Code.UNAVAILABLE)
        wait_for(lambda: len(server.stream_metadata) == 2 and server.streams, what="a new stream")
        accept(r, seed=1)
        ended(r, "acked", 2)
        assert r.metric("upstream_ready") == 1


def stream_refused():
    """A server without ACKs of its own: reports go, the log says what is wrong."""
    with gs.Server(default=gs.succeed) as server:
        server.stream_actions = [gs.fail(Code.UNIMPLEMENTED)]
        with relay(server.address, stream=False) as r:
            accept(r)
            wait_for(lambda: server.calls, what="the call")
            wait_for(lambda: "stream of ACKs ended: UNIMPLEMENTED" in r.log(), what="the log")


def restart():
    """What is accepted while the server is away is delivered when it is back."""
    with gs.Server() as server, relay(server.address) as r:
        accept(r)
        ended(r, "acked")
        server.stop()
        r.wait_metric("upstream_ready", value=0)
        sent = [accept(r, 100 + n, seed=1) for n in range(4)]
        time.sleep(2 * BASE)
        assert r.metric("index_reports_sent_total", "true") == 0, "a send without a server"
        server.start()
        ended(r, "acked", 5, seconds=30)
        assert [server.payloads(100 + n)[-1] for n in range(4)] == sent


def stopped_in_a_call():
    """The connection goes away under a call: sent again."""
    with gs.Server(actions=[gs.hang]) as server, relay(server.address) as r:
        payload = accept(r)
        wait_for(lambda: server.calls, what="the call")
        server.stop()
        server.start()
        ended(r, "acked", seconds=30)
        assert server.payloads(100)[-1] == payload


def goaway():
    """A graceful stop: the call under way ends well, the next goes to a new connection."""
    with gs.Server(default=gs.delay(1, gs.succeed)) as server, \
            relay(server.address, "response") as r:  # fmt: skip
        accept(r)
        wait_for(lambda: server.calls, what="the call")
        stopper = threading.Thread(target=server.stop, args=(5,))
        stopper.start()
        ended(r, "acked")
        stopper.join(20)
        server.start()
        r.wait_metric("upstream_ready", value=1)
        accept(r, seed=1)
        ended(r, "acked", 2)
        assert len(server.calls) == 2
        assert r.metric("index_reports_sent_total", "true") == 0


def unix_socket():
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        with gs.Server(address=f"unix:{d}/sensor") as server:
            os.chmod(f"{d}/sensor", 0o666)
            with relay(server.address) as r:
                accept(r)
                ended(r, "acked")


@contextlib.contextmanager
def with_file(path, text):
    """A command in front of the relay that lets it alone see another file there."""
    with tempfile.NamedTemporaryFile("w") as f:
        f.write(text)
        f.flush()
        os.chmod(f.name, 0o644)
        script = f'mount --bind {f.name} {path} && exec "$@"'
        wrap = ["unshare", "-m", "sh", "-c", script, "sh"]
        if subprocess.run([*wrap, "true"], capture_output=True, check=False).returncode:
            raise Skip("no mount namespaces here")
        yield wrap


def several_addresses():
    """A name of three addresses, and the server listens on one of them."""
    with gs.Server() as server, \
            with_file("/etc/hosts", "127.0.0.9 sensor.test\n127.0.0.1 sensor.test\n"
                                    "127.0.0.8 sensor.test\n") as wrap, \
            relay(f"sensor.test:{server.port}", wrap=wrap) as r:  # fmt: skip
        accept(r)
        ended(r, "acked")


class NameServer:
    """DNS on 127.0.0.53, in the place of /etc/resolv.conf's for the command in `wrap`. addresses: what
    every name has, None: no such name. cut: over UDP it says no more than that TCP has the answer."""

    def __init__(self, addresses, cut=False):
        self.addresses, self.cut, self.asked = addresses, cut, []
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.tcp = socket.socket()
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        try:
            self.udp.bind(("127.0.0.53", 53))
            self.tcp.bind(("127.0.0.53", 53))
        except OSError as e:
            raise Skip(f"port 53 of 127.0.0.53: {e}") from e
        self.tcp.listen()
        self.wrap = self.stack.enter_context(with_file("/etc/resolv.conf", "nameserver 127.0.0.53\n"))
        for serve in (self.serve_udp, self.serve_tcp):
            threading.Thread(target=serve, daemon=True).start()
        return self

    def __exit__(self, *exc):
        for s in (self.udp, self.tcp):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)
            s.close()
        self.stack.close()

    def answer(self, query, how):
        end = query.index(b"\0", 12) + 5
        kind = int.from_bytes(query[end - 4 : end - 2], "big")
        self.asked.append((how, kind))
        found = self.addresses if kind == 1 and not (self.cut and how == "udp") else []
        flags = 0x8180 | (0x200 if self.cut and how == "udp" else 0) | (3 if self.addresses is None else 0)
        records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\x05\0\4" + socket.inet_aton(a) for a in found or [])
        return (query[:2] + flags.to_bytes(2, "big") + b"\0\1" + len(found or []).to_bytes(2, "big")
                + bytes(4) + query[12:end] + records)  # fmt: skip

    def serve_udp(self):
        with contextlib.suppress(OSError):
            while (said := self.udp.recvfrom(512))[0]:
                self.udp.sendto(self.answer(said[0], "udp"), said[1])

    def serve_tcp(self):
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.tcp.accept()
                threading.Thread(target=self.serve_peer, args=(peer,), daemon=True).start()

    def serve_peer(self, peer):
        with peer, contextlib.suppress(OSError), peer.makefile("rb") as f:
            while size := f.read(2):
                reply = self.answer(f.read(int.from_bytes(size, "big")), "tcp")
                peer.sendall(len(reply).to_bytes(2, "big") + reply)


def names_from_dns(cut):
    """More addresses than are tried, the server's own among the first."""
    addresses = ["127.0.0.1", *(f"127.0.1.{n}" for n in range(1, 25))]
    with gs.Server() as server, NameServer(addresses, cut) as dns, \
            relay(f"sensor.example:{server.port}", wrap=dns.wrap) as r:  # fmt: skip
        accept(r)
        ended(r, "acked")
        assert {how for how, _ in dns.asked} == ({"udp", "tcp"} if cut else {"udp"}), dns.asked


def name_that_comes_later():
    """What no name server knows yet is asked for again."""
    with gs.Server() as server, NameServer(None) as dns, \
            relay(f"sensor.example:{server.port}", ready=False, stream=False, wrap=dns.wrap) as r:  # fmt: skip
        payload = accept(r)
        wait_for(lambda: "name: " in r.log(), 20, "the log says so")
        dns.addresses = []
        wait_for(lambda: "no address" in r.log() or "no data" in r.log(), 30, "a name without address")
        dns.addresses = ["127.0.0.1"]
        ended(r, "acked", seconds=40)
        assert payload in server.payloads(100)


def silent_resolver():
    """A name server that never answers stops nothing else."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns, \
            with_file("/etc/resolv.conf", "nameserver 127.0.0.53\n") as wrap:  # fmt: skip
        try:
            dns.bind(("127.0.0.53", 53))
        except OSError as e:
            raise Skip(f"port 53 of 127.0.0.53: {e}") from e
        with relay("sensor.nowhere.example:443", ready=False, wrap=wrap) as r:
            start = time.monotonic()
            for n in range(20):
                accept(r, 100 + n % VMS, seed=n)
            assert time.monotonic() - start < 5
            dns.settimeout(10)
            assert b"nowhere" in dns.recv(512)
            wait_for(lambda: "name: " in r.log(), 20, "the log says so")


def thousand_reports(r):
    """Of 100 VMs, each accepted. Returns the seconds that it took."""
    payloads = {n: rp.report(100 + n, 20000, seed=0) for n in range(100)}
    start = time.monotonic()
    for i in range(1000):
        n = i % 100
        if i >= 100:
            payloads[n] = payloads[n][:-8] + i.to_bytes(8, "big")
        status = rp.send_framed(r.path(f"vm{n}.sock"), payloads[n])
        assert status == rp.ACCEPTED, status
    return time.monotonic() - start


HUNDRED = {f"vm{n}.sock": 100 + n for n in range(100)}


def control_run():
    """The same with an upstream that takes everything: what full speed is on this machine, now."""
    with gs.Server(keep=False) as server, Relay(settings(server.address), hybrid=HUNDRED) as r:
        return thousand_reports(r)


def silent_upstream():
    """It accepts connections and says nothing: 1000 reports of 100 VMs go in at full speed."""
    full_speed = control_run()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with Relay(settings(address), hybrid=HUNDRED) as r:
            took = thousand_reports(r)
            assert took < 3 * full_speed, (took, full_speed)
            assert r.check()["contents_held"] == 100


def hung_calls():
    """Eight calls hang, as many as there may be: reports and ACKs come in at full speed."""
    full_speed = control_run()
    with gs.Server(default=gs.hang, keep=False) as server, \
            Relay(settings(server.address), hybrid=HUNDRED) as r:  # fmt: skip
        accept(r, seed=7)
        wait_for(lambda: server.calls, what="a call that hangs")
        start = time.monotonic()
        took = thousand_reports(r)
        assert took < 3 * full_speed, (took, full_speed)
        # The ACK of a send that the server has taken though its call still hangs.
        for n in range(100):
            server.ack(f"vm:{100 + n}")
        r.wait_metric("acks_received_total", value=100, seconds=5)
        assert r.metric("ack_outcomes_total", "settled") >= 1
        if time.monotonic() - start < 4:
            # No call has come to its deadline: what there may be is under way, and no more.
            assert r.metric("contents_in_flight") == 8
        assert r.check()["contents_held"] >= 92


def upstream_down_at_the_start():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with relay(f"127.0.0.1:{port}", ready=False) as r:
        payload = accept(r)
        time.sleep(1)
        with gs.Server(address=f"127.0.0.1:{port}") as server:
            ended(r, "acked", seconds=30)
            assert server.payloads(100) == [payload]


def resent_from_compressed():
    """What waited for its server in compressed form arrives as it was sent."""
    with gs.Server() as server, relay(server.address, cache={"compress_after": "50ms"}) as r:
        server.stop()
        r.wait_metric("upstream_ready", value=0)
        sent = [accept(r, 100 + n, size=None, packages=100 * 10**n) for n in range(3)]
        r.wait_metric("cache_compressed_contents", value=3)
        server.start()
        ended(r, "acked", 3, seconds=30)
        assert [server.payloads(100 + n)[-1] for n in range(3)] == sent


def stop_in_a_call():
    """SIGTERM while a call hangs: ends after the grace period, and in order."""
    hybrid = {"vm0.sock": 100, "vm1.sock": 101}
    with gs.Server(default=gs.hang) as server, Relay(settings(server.address), hybrid=hybrid) as r:
        r.wait_metric("upstream_ready", value=1)
        accept(r)
        accept(r, 101)
        wait_for(lambda: len(server.calls) == 2, what="the calls")
        start = time.monotonic()
        assert r.stop() == 0, r.log()
        assert time.monotonic() - start < 5
        assert "2 reports were not delivered" in r.log(), r.log()


def keys_need_a_restart():
    """A reload with another server is refused whole."""
    with gs.Server() as server, relay(server.address) as r:
        r.config["upstream"]["grpc"]["address"] = "127.0.0.1:1"
        r.write_config()
        log = r.reload()
        assert "upstream.grpc.address needs a restart" in log and "refused" in log, log
        accept(r)
        ended(r, "acked")


# ---- TLS ----


@contextlib.contextmanager
def tls(mutual=True, server_san="DNS:sensor.test", called="sensor.test", days=2, client_ca=None):
    """A server with a certificate, and the relay's settings for it."""
    with tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        ca = gs.Authority(f"{d}/ca")
        pair = ca.issue("sensor", server_san, days)
        own = ca.issue("relay", "DNS:relay")
        with gs.Server(credentials=gs.server_credentials(pair, ca.cert if mutual else None)) as s:
            conf = {
                "plaintext": False,
                "server_name": called,
                "ca": client_ca(d) if client_ca else ca.cert,
                "certificate": own[0] if mutual else "",
                "key": own[1] if mutual else "",
            }
            yield s, ca, conf


def grpc_settings(conf):
    return {"upstream": {"grpc": conf}}


def tls_works(mutual, san, name):
    with tls(mutual, san, name) as (server, _, conf), \
            relay(server.address, **grpc_settings(conf)) as r:  # fmt: skip
        payload = accept(r, size=2_500_000)
        ended(r, "acked")
        assert server.payloads(100) == [payload]
        assert "TLSv1.3" in r.log()


def tls_fails(text, **keys):
    with tls(**keys) as (server, _, conf), \
            relay(server.address, ready=False, **grpc_settings(conf)) as r:  # fmt: skip
        accept(r)
        wait_for(lambda: text in r.log(), 20, f"log with {text!r}")
        assert r.metric("upstream_ready") == 0
        assert not server.calls
        assert r.metric("contents_held") == 1


def other_ca(d):
    return gs.Authority(f"{d}/other", "other").cert


def no_client_certificate():
    with tls() as (server, _, conf):
        conf["certificate"] = conf["key"] = ""
        with relay(server.address, ready=False, **grpc_settings(conf)) as r:
            accept(r)
            wait_for(lambda: "asks for a certificate" in r.log(), 20, "the log")
            time.sleep(1)
            assert not server.calls


def new_certificate_while_running():
    """Files swapped the Kubernetes way, by a link: a new connection with the new ones, and a pair
    that does not match is not taken."""
    with tls() as (server, ca, conf), tempfile.TemporaryDirectory() as d:
        os.chmod(d, 0o755)
        files = ("ca.pem", "cert.pem", "key.pem")

        def publish(number, pair, ca_cert=ca.cert):
            os.mkdir(f"{d}/..{number}")
            for name, source in zip(files, (ca_cert, *pair)):
                with open(f"{d}/..{number}/{name}", "wb") as f:
                    f.write(gs.read(source))
            os.symlink(f"..{number}", f"{d}/..tmp")
            os.rename(f"{d}/..tmp", f"{d}/..data")

        publish(0, (conf["certificate"], conf["key"]))
        for name in files:
            os.symlink(f"..data/{name}", f"{d}/{name}")
        conf.update(ca=f"{d}/ca.pem", certificate=f"{d}/cert.pem", key=f"{d}/key.pem")
        with relay(server.address, **grpc_settings(conf)) as r:
            accept(r)
            ended(r, "acked")
            mixed = (ca.issue("relay2", "DNS:relay2")[0], conf["key"])
            other = ca.issue("relay3", "DNS:relay3")
            publish(1, (mixed[0], other[1]))
            wait_for(lambda: "the old ones stay" in r.log(), 20, "refusal of the mixed pair")
            accept(r, seed=1)
            ended(r, "acked", 2)
            publish(2, other)
            wait_for(lambda: "new TLS files" in r.log(), 20, "the new pair")
            wait_for(lambda: r.log().count("connected, TLS") == 2, 20, "a new connection")
            accept(r, seed=2)
            ended(r, "acked", 3)
            assert server.calls[0].peer != server.calls[-1].peer
            assert r.metric("index_reports_sent_total", "true") == 0


def plaintext_is_no_fallback():
    """A server without TLS gets nothing from a relay that was not told so."""
    with gs.Server() as server, tls() as (_, _ca, conf):
        with relay(server.address, ready=False, **grpc_settings(conf)) as r:
            accept(r)
            time.sleep(2)
            assert not server.calls and r.metric("upstream_ready") == 0


def missing_files():
    """They are named at the start, which fails."""
    r = Relay(settings("127.0.0.1:1", upstream={"grpc": {"plaintext": False, "ca": "/no/ca.pem"}}),
              hybrid={"vm0.sock": 100}, start=False)  # fmt: skip
    with r:
        r.start(wait=False)
        assert r.process.wait(20) != 0
        assert "/no" in r.log(), r.log()


# ---- all ----


def main():
    tap = Tap(only=sys.argv[1] if len(sys.argv) > 1 else None)
    subprocess.run(["openssl", "version"], check=True, capture_output=True)
    defaults = Defaults() if not tap.only else None
    statuses(tap)
    tap.run("no answer: DEADLINE_EXCEEDED after 5 s, sent again", no_answer)
    tap.run("delay: the answer that takes its time counts", slow)
    tap.run("acks response: success is the ACK; metadata; bytes as they came", response_is_the_ack)
    tap.run("16 MiB arrive whole", largest)
    tap.run("ACK before the reply: ends custody, nothing is left behind", ack_before_the_reply)
    tap.run("ACK late: retries until it comes", ack_late)
    tap.run("ACK of unknown or other ids, kinds and forms: nothing happens", acks_of_others)
    tap.run("ACK of the older of two contents: the newer stays", ack_of_the_older_of_two)
    tap.run("ACK twice: the second settles nothing", duplicate_ack)
    for reason, permanent in (("busy", False), ("", False), ("central rate limit exceeded", False),
                              ("missing scanner index data", True), ("unsupported action", True)):  # fmt: skip
        what = "custody ends" if permanent else "sent again"
        tap.run(f"NACK {reason!r}: {what}", nack, reason, permanent)
    tap.run("NACK with a reason of the settings: custody ends; reload", settable_nacks)
    tap.run("ACKs by CID alone: where the settings say so", acks_by_cid)
    tap.run("stream cut: opened again, reports go on", stream_cut)
    tap.run("stream refused: reports go on, the log says so", stream_refused)
    tap.run("server restart: what came meanwhile is delivered", restart)
    tap.run("server stops in a call: sent again", stopped_in_a_call)
    tap.run("GOAWAY: the call ends well, the next goes to a new connection", goaway)
    tap.run("unix socket", unix_socket)
    tap.run("several addresses: the next one is tried", several_addresses)
    tap.run("names from DNS over UDP", names_from_dns, False)
    tap.run("names from DNS over TCP, where UDP is too short", names_from_dns, True)
    tap.run("a name that comes later is found", name_that_comes_later)
    tap.run("resolver never answers: reports are accepted", silent_resolver)
    tap.run("server accepts and never answers: 1000 reports at full speed", silent_upstream)
    tap.run("calls hang: 1000 reports and 100 ACKs at full speed", hung_calls)
    tap.run("server away at the start: delivered once it is there", upstream_down_at_the_start)
    tap.run("compressed while the server was away: delivered as it was", resent_from_compressed)
    tap.run("SIGTERM in a call: ends within the grace period", stop_in_a_call)
    tap.run("reload with another address: refused, the old one stays", keys_need_a_restart)
    tap.run("TLS: server's certificate checked", tls_works, False, "DNS:sensor.test", "sensor.test")
    tap.run("TLS: mutual certificates", tls_works, True, "DNS:sensor.test", "sensor.test")
    tap.run("TLS: name from the address", tls_works, True, "IP:127.0.0.1", "")
    tap.run("TLS: wrong CA", tls_fails, "certificate", client_ca=other_ca)
    tap.run("TLS: wrong name", tls_fails, "hostname mismatch", called="central.test")
    tap.run("TLS: wrong address", tls_fails, "IP address mismatch", called="")
    tap.run("TLS: expired certificate", tls_fails, "expired", days=-1)
    tap.run("TLS: no certificate of ours where one is asked for", no_client_certificate)
    tap.run("TLS: new certificate while running", new_certificate_while_running)
    tap.run("TLS: no fallback to plaintext", plaintext_is_no_fallback)
    tap.run("TLS: missing files are named", missing_files)
    if defaults:
        tap.run("default rate and retries: the first retry is seen at 60 s", defaults.join)
    tap.end()


main()
