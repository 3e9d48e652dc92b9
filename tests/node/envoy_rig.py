"""Nodes and workloads out of network namespaces, with a real Envoy and real xDS.

Everything that speaks is in this process: sockets are made inside the namespaces and used from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import datetime
import functools
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from envoy.extensions.transport_sockets.tls.v3 import secret_pb2

from penstock.envoy.names import TRUST_BUNDLE
from penstock.envoy.process import UID, EnvoyProcess
from penstock.envoy.resources import Builder
from penstock.observe.als import RequestRecord, access_log_service
from penstock.routing.model import ProxyModel
from penstock.world import Settings
from penstock.xds.order import Rollout
from penstock.xds.server import Outcome, XdsServer
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl, resource

Address = IPv4Address | IPv6Address
PREFIX = f"ptenvoy{os.getpid()}-"
STEER = Path(__file__).with_name("envoy_steer.c")
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SETTLE = 10.0
GATEWAY = "169.254.1.1"
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


def _setns(fd: int) -> None:
    assert _libc.setns(fd, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Runs this thread in a network namespace. Awaiting inside takes all other tasks along."""
    with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{PREFIX}{namespace}") as there:
        _setns(there.fileno())
        try:
            yield
        finally:
            _setns(home.fileno())


# -- certificates -----------------------------------------------------------------------------------


class Authority:
    """A root that signs certificates with one SPIFFE id each."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])
        self.root = self._sign(self.name, self.key.public_key(), x509.BasicConstraints(True, None), ())

    def _sign(
        self, subject: x509.Name, key: Any, constraints: Any, names: tuple[str, ...]
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(constraints, critical=True)
        )
        if names:
            uris = [x509.UniformResourceIdentifier(name) for name in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def secret(self, name: str, spiffe_id: str) -> Resource:
        key = ec.generate_private_key(ec.SECP256R1())
        chain = self._sign(x509.Name([]), key.public_key(), x509.BasicConstraints(False, None), (spiffe_id,))
        message = secret_pb2.Secret(name=name)
        message.tls_certificate.certificate_chain.inline_bytes = chain.public_bytes(
            serialization.Encoding.PEM
        )
        message.tls_certificate.private_key.inline_bytes = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return resource(name, message)

    def bundle(self) -> Resource:
        message = secret_pb2.Secret(name=TRUST_BUNDLE)
        pem = self.root.public_bytes(serialization.Encoding.PEM)
        message.validation_context.trusted_ca.inline_bytes = pem
        return resource(TRUST_BUNDLE, message)


# -- HTTP by hand -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


async def _head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    text = (await reader.readuntil(b"\r\n\r\n")).decode()
    first, *lines = text.rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if headers.get("transfer-encoding") != "chunked":
        return await reader.readexactly(int(headers.get("content-length", 0)))
    parts = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        parts += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return parts


class Connection:
    """A client's kept-alive HTTP/1.1 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def request(self, path: str = "/", method: str = "GET", **headers: str) -> Response:
        given = {"host": "web", **{name.replace("_", "-"): value for name, value in headers.items()}}
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        first, answered = await asyncio.wait_for(_head(self.reader), SETTLE)
        body = await asyncio.wait_for(_body(self.reader, answered), SETTLE)
        return Response(int(first.split()[1]), answered, body)

    def close(self) -> None:
        self.writer.close()


async def _echo(name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers every request with what it saw; `x-status` chooses the status."""
    peer = writer.get_extra_info("peername")
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            first, headers = await _head(reader)
            await _body(reader, headers)
            method, path, _ = first.split(" ", 2)
            if "upgrade" in headers:
                writer.write(b"HTTP/1.1 101 So\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                writer.write((await reader.readexactly(4)).upper())
            saw = {"backend": name, "peer": peer[:2], "method": method, "path": path, "headers": headers}
            body = json.dumps(saw).encode()
            head = f"HTTP/1.1 {headers.get('x-status', 200)} So\r\ncontent-length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
    writer.close()


# -- machines ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    namespace: str
    v4: IPv4Address
    v6: IPv6Address
    node: Node = field(compare=False)

    async def connect(self, address: Address | str, port: int) -> Connection:
        """Opens a TCP connection from inside the workload."""
        target = ip_address(str(address))
        family = socket.AF_INET if target.version == 4 else socket.AF_INET6
        with inside(self.namespace):
            sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await asyncio.wait_for(loop.sock_connect(sock, (str(target), port)), SETTLE)
        except BaseException:
            sock.close()
            raise
        connection = Connection(*await asyncio.open_connection(sock=sock))
        self.node.connections.append(connection)
        return connection

    async def get(self, address: Address | str, port: int, path: str = "/", **headers: str) -> Response:
        """One request on a connection of its own."""
        connection = await self.connect(address, port)
        try:
            return await connection.request(path, **headers)
        finally:
            connection.close()

    async def listen(self, port: int, handler: Handler, stack: contextlib.AsyncExitStack) -> None:
        """A TCP server in the workload, on both families."""
        with inside(self.namespace):
            sock = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        server = await asyncio.start_server(handler, sock=sock)
        stack.callback(server.close)

    async def serve(self, port: int, stack: contextlib.AsyncExitStack) -> None:
        """An HTTP server in the workload that tells its own name."""
        await self.listen(port, functools.partial(_echo, self.namespace), stack)


@dataclass(frozen=True)
class Steer:
    """Connections to (`to`, `port`) go to a listener; `proxied` are those from a proxy's source port."""

    to: Address
    port: int
    listener: int
    proxied: bool = False
    source: Address | None = None


def _low(address: Address | None) -> str:
    return f"{int(address or 0) & 0xFFFFFFFF}u"


@dataclass
class Node:
    """A node namespace with workloads behind it, an xDS server and an Envoy."""

    name: str
    number: int
    run_dir: Path
    workloads: dict[str, Workload] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    secrets: dict[str, Resource] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    """Of its workloads, closed at the end."""

    def __post_init__(self) -> None:
        self.log: asyncio.Queue[RequestRecord] = asyncio.Queue()
        logs = access_log_service(self.log.put_nowait)
        self.xds = XdsServer(self.run_dir / "xds.sock", services=(logs,), group=UID)
        self.envoy = EnvoyProcess(self.run_dir, node=self.name, concurrency=2, log_level="warning")
        self.builder = Builder(self.settings, resource)

    def sh(self, command: str) -> str:
        return run("nsenter", f"--net=/run/netns/{PREFIX}{self.name}", *command.split())

    async def start(self) -> None:
        await self.xds.start()
        with inside(self.name):
            pid = asyncio.ensure_future(self.envoy.start())
            # start() spawns before it first waits: the child is born in this namespace.
            await asyncio.sleep(0)
        await pid

    async def stop(self) -> None:
        for connection in self.connections:
            connection.close()
        await self.envoy.stop()
        await self.xds.stop()

    async def apply(self, model: ProxyModel) -> list[Outcome]:
        """Publishes the model stage by stage; all must be acknowledged."""
        types = {kind: dict(items) for kind, items in self.builder.build(model).items()}
        types[TypeUrl.SDS] = self.secrets
        outcomes = [
            await self.xds.roll_to(stage, SETTLE)
            for stage in Rollout(self.xds.published, Snapshot(types)).stages()
        ]
        assert all(outcome.ok for outcome in outcomes), outcomes
        return outcomes

    def workload(self, name: str) -> Workload:
        """A workload behind a routed veth: 10.<node>.0.<n> and fd00:<node>::<n>."""
        number = len(self.workloads) + 11
        namespace = f"{self.name}-{name}"
        v4, v6 = IPv4Address(f"10.{self.number}.0.{number}"), IPv6Address(f"fd00:{self.number}::{number}")
        run("ip", "netns", "add", PREFIX + namespace)
        inner = ["nsenter", f"--net=/run/netns/{PREFIX}{namespace}"]
        self.sh(f"ip link add v-{name} type veth peer name eth0 netns {PREFIX}{namespace}")
        self.sh(f"sysctl -qw net.ipv4.conf.v-{name}.rp_filter=0")
        self.sh(f"ip addr add {GATEWAY}/32 dev v-{name}")
        self.sh(f"ip addr add fe80::1/64 dev v-{name} nodad")
        self.sh(f"ip link set v-{name} up")
        for command in (
            "ip link set lo up",
            f"ip addr add {v4}/32 dev eth0",
            f"ip addr add {v6}/128 dev eth0 nodad",
            "ip link set eth0 up",
            f"ip route add default via {GATEWAY} dev eth0 onlink",
            "ip -6 route add default via fe80::1 dev eth0",
        ):
            run(*inner, *command.split())
        self.sh(f"ip route add {v4}/32 dev v-{name}")
        self.sh(f"ip -6 route add {v6}/128 dev v-{name}")
        self.workloads[name] = Workload(namespace, v4, v6, self)
        return self.workloads[name]

    def steer(self, device: str, *rules: Steer) -> None:
        """What comes in at the device: answers to Envoy go to Envoy, new connections as the rules say."""
        text = " ".join(
            f"RULE({rule.to.version},{_low(rule.source)},{_low(rule.to)},{rule.port},{int(rule.proxied)},"
            f"{rule.listener})"
            for rule in rules
        )
        built = self.run_dir / f"{device}.o"
        run("clang", "-O2", "-g", "-target", "bpf", f"-I/usr/include/{os.uname().machine}-linux-gnu",
            f"-DRULES={text}", "-c", str(STEER), "-o", str(built))  # fmt: skip
        self.sh(f"tc qdisc replace dev {device} clsact")
        self.sh(f"tc filter replace dev {device} ingress pref 1 handle 1 bpf da obj {built} sec tc")


def _make_node(name: str, number: int, run_dir: Path) -> Node:
    run("ip", "netns", "add", PREFIX + name)
    node = Node(name, number, run_dir)
    node.sh("ip link set lo up")
    node.sh(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0"
        " net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.default.accept_dad=0"
    )
    run(
        "nsenter", f"--net=/run/netns/{PREFIX}{name}",
        "sysctl", "-qw", "net.ipv4.ip_local_port_range=20000 60999",
    )  # fmt: skip
    for family in ("-4", "-6"):
        node.sh(f"ip {family} rule add fwmark 0x200/0xf00 lookup 2004")
        node.sh(f"ip {family} route add local default dev lo table 2004")
    return node


def link(one: Node, two: Node) -> None:
    """Joins two nodes and gives each the routes to the other's workloads."""
    one.sh(f"ip link add to-{two.name} type veth peer name to-{one.name} netns {PREFIX}{two.name}")
    for node, other in ((one, two), (two, one)):
        device = f"to-{other.name}"
        node.sh(f"ip addr add 192.0.2.{node.number}/24 dev {device}")
        node.sh(f"ip addr add fd01::{node.number}/64 dev {device} nodad")
        node.sh(f"ip link set {device} up")
        node.sh(f"ip route add 10.{other.number}.0.0/24 via 192.0.2.{other.number}")
        node.sh(f"ip -6 route add fd00:{other.number}::/32 via fd01::{other.number}")


@contextlib.asynccontextmanager
async def nodes(*names: str) -> AsyncIterator[list[Node]]:
    """Nodes that exist, with nothing running yet; all is gone at the end."""
    assert os.geteuid() == 0, "this test makes network namespaces: run it as root"
    _clean()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as base:
        os.chmod(base, 0o755)
        made = []
        try:
            for number, name in enumerate(names, 1):
                run_dir = Path(base) / name
                run_dir.mkdir(mode=0o755)
                made.append(_make_node(name, number, run_dir))
            yield made
        finally:
            for node in made:
                await node.stop()
            _clean()


def _clean() -> None:
    for namespace in Path("/run/netns").glob(f"{PREFIX}*"):
        run("ip", "netns", "delete", namespace.name)
