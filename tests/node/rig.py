"""A mesh for a test: a lab, one real daemon for each of its nodes, and clients inside its workloads.

The daemons are processes of their own (`penstock run`), started in their node's network namespace with run
and state directories of this mesh alone. `Mesh.close` ends everything and then looks whether anything is
left. A client is a socket made inside a workload's namespace and used from the test's own process.
"""

from __future__ import annotations

import asyncio
import ctypes
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import yaml

from penstock import lab
from penstock.control import ControlClient
from penstock.envoy.admin import Admin
from penstock.envoy.bootstrap import admin_socket
from penstock.envoy.process import base_id
from penstock.errors import NoDaemonError
from penstock.lab import LabNode, LabSpec, LabWorkload

PENSTOCK = [sys.executable, "-m", "penstock.cli"]
SETTLE = 15.0
"""Seconds in which a change must be in force: generous, since the machine may be busy with other things."""
REFUSED = 0.6
"""Seconds after which what has not come through is taken as dropped (a SYN is sent once in this time)."""
T = TypeVar("T")


def until(what: str, question: Callable[[], T], seconds: float = 10.0) -> T:
    """The first true answer to `question`; AssertionError naming `what` if none comes in time."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what} (last: {answer!r})")
        time.sleep(0.01)  # between two looks at something that tells nobody when it changes
    return answer


# --- clients -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str]

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body))

    @property
    def pod(self) -> str:
        """Who answered, as the lab's backend tells it."""
        return str(self.json["pod"])


def make_socket(where: Path, kind: int = socket.SOCK_STREAM, version: int = 4) -> socket.socket:
    with lab.entered(where):
        return socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind)


def connect(
    client: LabWorkload | LabNode,
    address: Any,
    port: int,
    *,
    timeout: float = 5.0,
    source: Any = None,
    source_port: int = 0,
) -> socket.socket:
    """A TCP connection from inside `client`. Raises OSError, TimeoutError where packets are dropped."""
    version = 6 if ":" in str(address) else 4
    sock = make_socket(client.netns, version=version)
    sock.settimeout(timeout)
    try:
        if source or source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((str(source or ("0.0.0.0" if version == 4 else "::")), source_port))
        sock.connect((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


class Http:
    """One kept-alive connection. Requests are sent as written: the path is not tidied up."""

    def __init__(self, client: LabWorkload, address: Any, port: int, *, timeout: float = 5.0) -> None:
        self.sock = connect(client, address, port, timeout=timeout)
        host = f"[{address}]" if ":" in str(address) else str(address)
        self._connection = http.client.HTTPConnection(host, port)
        self._connection.sock = self.sock
        self._connection.auto_open = 0

    def ask(
        self,
        path: str = "/",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Answer:
        self._connection.request(method, path, body=body, headers=dict(headers or {}))
        response = self._connection.getresponse()
        return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})

    def close(self) -> None:
        self.sock.close()
        self._connection.close()

    def __enter__(self) -> Http:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ask(
    client: LabWorkload, address: Any, port: int, path: str = "/", *, timeout: float = 5.0, **how: Any
) -> Answer:
    """One request on a connection of its own."""
    with Http(client, address, port, timeout=timeout) as connection:
        return connection.ask(path, **how)


def status_or_reset(connection: Http, path: str = "/") -> int:
    """The status code of one more request; 0 if the connection was reset or closed instead."""
    try:
        return connection.ask(path).status
    except (ConnectionError, http.client.HTTPException):
        return 0


def echoes(client: LabWorkload, address: Any, port: int, *, timeout: float = REFUSED) -> bool:
    """Whether a TCP echo server answers there."""
    try:
        with connect(client, address, port, timeout=timeout) as sock:
            sock.sendall(b"back please")
            return sock.recv(99) == b"back please"
    except OSError:
        return False


def udp_echoes(
    client: LabWorkload, address: Any, port: int, *, connected: bool = True, timeout: float = REFUSED
) -> bool:
    """Whether a UDP echo server answers, and seems to answer from just the address that was asked."""
    with make_socket(client.netns, socket.SOCK_DGRAM, 6 if ":" in str(address) else 4) as sock:
        sock.settimeout(timeout)
        try:
            if connected:
                sock.connect((str(address), port))
                sock.send(b"back please")
                return sock.recv(99) == b"back please"
            sock.sendto(b"back please", (str(address), port))
            data, peer = sock.recvfrom(99)
        except (TimeoutError, ConnectionError):
            return False
        assert peer[:2] == (str(address), port)
        return data == b"back please"


def pings(client: LabWorkload, address: Any) -> bool:
    process = lab.run_in(client.netns, ["ping", "-n", "-c1", "-W1", str(address)], stdout=subprocess.DEVNULL)
    return process.wait(timeout=10) == 0


@contextmanager
def extra_address(where: LabWorkload | LabNode, address: Any, device: str = "eth0") -> Iterator[None]:
    """One more address in a namespace, while the block lasts."""
    text = f"{address}/{128 if ':' in str(address) else 32}"
    flags = ["nodad"] if ":" in text else []
    assert lab.run_in(where.netns, ["ip", "addr", "add", text, "dev", device, *flags]).wait() == 0
    try:
        yield
    finally:
        assert lab.run_in(where.netns, ["ip", "addr", "del", text, "dev", device]).wait() == 0


def served(sock: socket.socket, request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
    """What comes back for a request; nothing if the connection ends, or is silent for a while."""
    sock.settimeout(1.0)
    try:
        sock.sendall(request)
        return sock.recv(4096)
    except (TimeoutError, ConnectionError):
        return b""


class Sniffer:
    """Every TCP segment with a payload that passes a device meanwhile, as (source port, bytes)."""

    def __init__(self, where: Path, device: str) -> None:
        with lab.entered(where):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.bind((device, 3))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
        self.segments: list[tuple[int, bytes]] = []

    def __enter__(self) -> Sniffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.setblocking(False)
        with suppress(BlockingIOError):
            while frame := self._sock.recv(1 << 17):
                self._take(frame)
        self._sock.close()

    def _take(self, frame: bytes) -> None:
        kind = frame[12:14]
        if kind == b"\x08\x00" and frame[23] == socket.IPPROTO_TCP:
            start, end = 14 + (frame[14] & 15) * 4, 14 + int.from_bytes(frame[16:18], "big")
        elif kind == b"\x86\xdd" and frame[20] == socket.IPPROTO_TCP:
            start, end = 54, 54 + int.from_bytes(frame[18:20], "big")
        else:
            return
        payload = frame[start + (frame[start + 12] >> 4) * 4 : end]
        if payload:
            self.segments.append((int.from_bytes(frame[start : start + 2], "big"), payload))

    def carried(self, text: bytes) -> bool:
        return any(text in payload for _, payload in self.segments)

    def tls(self) -> bool:
        """Whether everything seen is TLS, handshakes included (RFC 8446, 5.1), and there was some."""
        starts = [payload for _, payload in self.segments if payload[1:3] in (b"\x03\x01", b"\x03\x03")]
        return any(p[0] == 0x16 for p in starts) and any(p[0] == 0x17 for p in starts)


class Load:
    """Requests without a pause from a thread of its own, on one kept-alive connection or on a new one each.

    `seen` counts the answers: status codes, or the name of the exception in place of one. A kept-alive
    connection that breaks is counted and made anew.
    """

    def __init__(
        self, client: LabWorkload, address: Any, port: int, path: str = "/", *, keep: bool = True
    ) -> None:
        self._client, self._address, self._port, self._path, self._keep = client, address, port, path, keep
        self.seen: Counter[int | str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"load of {client.name}")

    def _run(self) -> None:
        connection: Http | None = None
        while not self._stop.is_set():
            try:
                connection = connection or Http(self._client, self._address, self._port)
                self.seen[connection.ask(self._path).status] += 1
                broken = False
            except (OSError, http.client.HTTPException) as error:
                self.seen[type(error).__name__] += 1
                broken = True
            if connection is not None and (broken or not self._keep):
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def more(self, count: int = 20, seconds: float = 10.0) -> None:
        """Wait for so many more answers."""
        target = self.seen.total() + count
        until(f"{count} more answers", lambda: self.seen.total() >= target, seconds)

    def __enter__(self) -> Load:
        self._thread.start()
        self.more(3)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


# --- manifests -------------------------------------------------------------------------------------------


def select(**labels: str) -> dict[str, Any]:
    return {"matchLabels": labels}


def ports(*numbers: int, http: list[dict[str, Any]] | None = None, protocol: str = "TCP") -> dict[str, Any]:
    found: dict[str, Any] = {"ports": [{"port": str(n), "protocol": protocol} for n in numbers]}
    if http is not None:
        found["rules"] = {"http": http}
    return found


def policy(name: str, selector: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"endpointSelector": selector, **spec},
    }


def service(name: str, *served: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"ports": list(served), **spec},
    }


def route(name: str, parent: str, *rules: dict[str, Any]) -> dict[str, Any]:
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": parent}], "rules": list(rules)},
    }


def to(name: str, weight: int = 1, port: int = 80) -> dict[str, Any]:
    return {"name": name, "port": port, "weight": weight}


def peer_authentication(name: str, mode: str, **labels: str) -> dict[str, Any]:
    spec: dict[str, Any] = {"mtls": {"mode": mode}}
    if labels:
        spec["selector"] = select(**labels)
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": name},
        "spec": spec,
    }


# --- the mesh --------------------------------------------------------------------------------------------


@dataclass
class Daemon:
    """The daemon of one node, and what it left on the machine when it is not running."""

    node: LabNode
    config: Path
    base: Path
    run_dir: Path
    process: subprocess.Popen[bytes] | None = None
    before: str = ""
    seen: dict[str, set[int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def log(self) -> Path:
        return self.base / f"{self.name}.log"

    @cached_property
    def envoy_log(self) -> Path:
        return self.run_dir / "envoy" / "envoy.log"

    def start(self) -> None:
        command = [*PENSTOCK, "run", "--config", str(self.config), "--run-dir", str(self.run_dir)]
        command += ["--state-dir", str(self.base / f"state-{self.name}"), "--ca-dir", str(self.base / "ca")]
        with self.log.open("ab") as output:
            self.process = lab.run_in(
                self.node.netns,
                [*command, "--node", self.name],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended\n{self.tail()}"
        try:
            self.call("status")
        except NoDaemonError:
            return False
        return True

    def call(self, name: str, **arguments: Any) -> Any:
        with ControlClient(self.run_dir) as client:
            return client.call(name, **arguments)

    def status(self) -> dict[str, Any]:
        return dict(self.call("status"))

    def wait(self, seconds: float = SETTLE) -> dict[str, Any]:
        """What `penstock status --wait` does; AssertionError if not all is settled in time."""
        found = dict(self.call("wait", seconds=seconds))
        if not found["settled"]:
            what = {k: found[k] for k in ("errors", "waiting_for", "missing", "envoy")}
            raise AssertionError(f"{self.name} is not settled: {what}\n{self.tail()}")
        return found

    def counter(self, reason: str) -> int:
        return int(self.status()["counters"].get(reason, {}).get("packets", 0))

    def observed(self, last: int = 200) -> list[dict[str, Any]]:
        with ControlClient(self.run_dir) as client:
            return list(client.stream("observe", last=last, follow=False))

    @property
    def admin(self) -> Admin:
        return Admin(admin_socket(self.run_dir))

    def envoy_stats(self, prefix: str) -> dict[str, int]:
        return dict(asyncio.run(self.admin.stats(prefix)))

    def downstream(self) -> int:
        """Connections that the node's Envoy took from anybody but the daemon."""
        found = self.envoy_stats("listener.")
        return sum(
            n for key, n in found.items() if key.endswith("downstream_cx_total") and "admin" not in key
        )

    @property
    def envoy_pid(self) -> int:
        """0 while there is none."""
        with suppress(FileNotFoundError, ValueError):
            return int((self.run_dir / "envoy" / "envoy.pid").read_text())
        return 0

    def kill_envoy(self) -> None:
        """SIGKILL, and back when another one runs."""
        before = self.envoy_pid
        os.kill(before, signal.SIGKILL)
        until("another Envoy", lambda: self.envoy_pid not in (0, before))

    def end(self) -> None:
        """SIGTERM, and SIGKILL if that does not end it; fine if it does not run."""
        if self.process is not None and self.process.poll() is None:
            try:
                self.stop()
            finally:
                self.kill()

    def kill(self) -> None:
        """SIGKILL, as by the kernel when memory runs out."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM; the datapath and Envoy stay up."""
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(timeout=15) == 0, self.tail()

    def tail(self, lines: int = 25) -> str:
        with suppress(FileNotFoundError):
            return "\n".join(self.log.read_text().splitlines()[-lines:])
        return ""

    def take_down(self) -> None:
        done = lab.run_in(
            self.node.netns,
            [*PENSTOCK, "down", "--run-dir", str(self.run_dir)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = done.communicate(timeout=30)
        assert done.returncode == 0, output.decode()

    # --- what a daemon must not leave ------------------------------------------------------------------

    def remember(self) -> None:
        """Note the numbers of all links, programs and maps that are pinned now."""
        for pin in (self.run_dir / "bpf").rglob("*"):
            # bpffs makes *.debug by itself, for reading.
            if pin.is_file() and pin.suffix != ".debug":
                fd = _bpf_fd(_OBJ_GET, pathname=pin)
                kind, info = _object_info(fd)
                self.seen.setdefault(kind, set()).add(info[1])
                if kind == "link":
                    self.seen.setdefault("prog", set()).add(info[2])
                os.close(fd)

    def left(self) -> list[str]:
        """What is still there of a daemon that was taken down."""
        found = [f"{kind} {n}" for kind, ids in self.seen.items() for n in sorted(ids) if _lives(kind, n)]
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        found += [line for line in mounts if f" {self.run_dir}/" in line]
        segment = f"envoy_shared_memory_{base_id(self.run_dir)}"
        found += [p.name for p in Path("/dev/shm").iterdir() if p.name[:-1] == segment]
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    command = (entry / "cmdline").read_bytes()
                    if str(self.run_dir).encode() in command:
                        found.append(command.replace(b"\0", b" ").decode())
        return found

    def look_back(self) -> None:
        """AssertionError if anything is left or not as before, or the daemon told of a fault of ours."""
        with suppress(AssertionError):
            until("all is gone", lambda: not self.left(), 5.0)
        problems = [f"left: {what}" for what in self.left()]
        changed = set(self.before.splitlines()) ^ set(self.network().splitlines())
        problems += [f"not as before: {line}" for line in sorted(changed)]
        lines = self.log.read_text().splitlines()
        problems += [line for line in lines if "internal error" in line or "Traceback" in line]
        assert not problems, "\n".join(dict.fromkeys(problems))

    def network(self) -> str:
        """The node's rules, routes and settings that a daemon may touch."""
        commands = [["ip", f, "rule"] for f in ("-4", "-6")]
        commands += [["ip", f, "route", "show", "table", t] for f in ("-4", "-6") for t in ("main", "2004")]
        commands += [["ip", "-br", "addr"]]
        text = ""
        for command in commands:
            process = lab.run_in(
                self.node.netns, command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            lines = process.communicate(timeout=10)[0].splitlines(keepends=True)
            # Workloads come and go in a test; they are the lab's.
            text += f"{' '.join(command)}\n{''.join(line for line in lines if 'veth-' not in line)}"
        with lab.entered(self.node.netns):
            for name in ("ip_local_port_range", "ip_forward", "conf/all/rp_filter"):
                text += f"{name} {Path('/proc/sys/net/ipv4', name).read_text()}"
        return text


class Mesh:
    """A lab with its daemons, all reading one folder of manifests."""

    def __init__(self, spec: LabSpec, base: Path) -> None:
        self.spec = spec
        self.base = base
        self.config = base / "config"
        self.config.mkdir()
        lab.write_manifests(spec, self.config)
        self.daemons = {
            node.name: Daemon(node, self.config, base, Path(f"/run/{spec.name}-{node.name}"))
            for node in spec.nodes
        }

    def __getitem__(self, name: str) -> LabWorkload:
        return self.spec.workload(name)

    def on(self, workload: str) -> Daemon:
        """The daemon of the node that a workload is on."""
        return self.daemons[self.spec.workload(workload).node]

    def open(self) -> None:
        for daemon in self.daemons.values():
            daemon.before = daemon.network()
            daemon.start()
        for daemon in self.daemons.values():
            until(f"the daemon of {daemon.name} answers", daemon.answers, SETTLE)
        self.wait()

    def wait(self) -> None:
        for daemon in self.daemons.values():
            daemon.wait()

    def write(self, name: str, text: str) -> Path:
        """Put one file into the folder, renamed into place."""
        part = self.config / f".{name}.part"
        part.write_text(text)
        return part.rename(self.config / name)

    def apply(self, *documents: dict[str, Any]) -> None:
        """Exactly these objects besides the lab's own, in force on every node."""
        self.write("scenario.yaml", self.text(*documents))
        self.wait()

    @staticmethod
    def text(*documents: dict[str, Any]) -> str:
        """Never empty: a file that becomes empty keeps its last content for a while."""
        return "# objects\n" + yaml.safe_dump_all(documents, sort_keys=False)

    def vip(self, name: str, version: int = 4) -> str:
        node = next(iter(self.daemons.values()))
        found = node.call("get", kind="service", object_name=name, namespace="default", all_namespaces=False)
        return next(a for a in found["spec"]["clusterIPs"] if (":" in a) == (version == 6))

    def close(self) -> None:
        """End everything. AssertionError if a daemon does not end well or leaves anything."""
        problems = []
        for daemon in self.daemons.values():
            for step in (daemon.remember, daemon.end, daemon.take_down, daemon.take_down, daemon.look_back):
                try:
                    step()
                except (AssertionError, OSError, subprocess.SubprocessError) as error:
                    problems.append(f"{daemon.name}: {step.__name__}: {error}")
        lab.down(self.spec.name)
        for daemon in self.daemons.values():
            shutil.rmtree(daemon.run_dir, ignore_errors=True)
        assert not problems, "\n".join(problems)


def workload(name: str, node: str, *, serves: bool = False, **more: Any) -> dict[str, Any]:
    """A workload labelled ``app: NAME``; one that serves has HTTP at 8080 and 8081, echo at 9090 and 9091."""
    entry: dict[str, Any] = {
        "name": name,
        "node": node,
        "labels": {"app": name},
        "serviceAccountName": name,
        **more,
    }
    if serves:
        entry["ports"] = [
            {"name": "http", "containerPort": 8080},
            {"name": "alt", "containerPort": 8081},
            {"name": "echo", "containerPort": 9090},
            {"name": "dgram", "containerPort": 9091, "protocol": "UDP"},
        ]
        echo = [*PENSTOCK, "lab", "echo", "--name", name, "--http", "8080", "--http", "8081"]
        entry["run"] = [[*echo, "--tcp", "9090", "--udp", "9091"]]
    return entry


@contextmanager
def mesh(spec: LabSpec, base: Path) -> Iterator[Mesh]:
    """Bring a mesh up, and take it down whatever happens."""
    lab.up(spec)
    made: Mesh | None = None
    try:
        made = Mesh(spec, base)
        made.open()
        yield made
    finally:
        if made is None:
            lab.down(spec.name)
        else:
            made.close()


# --- bpf(2), for the numbers of what is pinned --------------------------------------------------------------

_SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
_OBJ_GET, _OBJ_GET_INFO = 7, 15
_BY_ID = {"prog": 13, "map": 14, "link": 30}
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, 128)
    return int(_libc.syscall(_SYSCALL_BPF, command, ctypes.byref(buffer), 128))


def _bpf_fd(command: int, *, pathname: Path) -> int:
    name = ctypes.create_string_buffer(os.fsencode(pathname))
    fd = _bpf(command, struct.pack("=Q", ctypes.addressof(name)))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(pathname))
    return fd


def _object_info(fd: int) -> tuple[str, tuple[int, ...]]:
    """What the descriptor is, and (type, id, program id for a link)."""
    kind = os.readlink(f"/proc/self/fd/{fd}").rpartition("bpf")[2].strip("-_]")
    buffer = ctypes.create_string_buffer(256)
    assert _bpf(_OBJ_GET_INFO, struct.pack("=IIQ", fd, 256, ctypes.addressof(buffer))) == 0
    return kind, struct.unpack_from("=III", buffer)


def _lives(kind: str, number: int) -> bool:
    fd = _bpf(_BY_ID[kind], struct.pack("=I", number))
    if fd < 0:
        return False
    os.close(fd)
    return True
