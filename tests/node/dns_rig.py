"""A world with names, for tests: servers of names and of bytes in a lab's underlay, and clients that ask."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from clients import make_socket
from rig import Mesh

from penstock import lab
from penstock.lab import LabWorkload

WEB = 8443
"""Where the world's hosts greet who connects."""


@dataclass
class Zone:
    """What a server says: (name, type) → records, and names that it answers with an error."""

    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    ttl: int = 300
    ttls: dict[str, int] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    truncated: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, bool]] = field(default_factory=list)
    """Name, type and whether it came by TCP."""

    def answer(self, wire: bytes, *, tcp: bool) -> bytes | None:
        message = dns.message.from_wire(wire)
        asked = message.question[0]
        name, kind = asked.name.to_text().lower().rstrip("."), dns.rdatatype.to_text(asked.rdtype)
        self.asked.append((name, kind, tcp))
        if name in self.silent:
            return None
        made = dns.message.make_response(message, recursion_available=True)
        if name in self.errors:
            made.set_rcode(dns.rcode.from_text(self.errors[name]))
            return made.to_wire()
        if name in self.truncated and not tcp:
            made.flags |= dns.flags.TC
            return made.to_wire()
        known = False
        for _ in range(8):
            known = known or any(owner == name for owner, _ in self.records)
            ttl = self.ttls.get(name, self.ttl)
            for each in (kind, "CNAME"):
                if found := self.records.get((name, each)):
                    made.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", each, *found))
                    break
            else:
                break
            if each == kind:
                break
            name = found[0].rstrip(".")
        if not known:
            made.set_rcode(dns.rcode.NXDOMAIN)
        return made.to_wire()


class World:
    """Hosts on the wire between the nodes: `host(n)` is one, each with an address of both families."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self.netns = mesh.spec.underlay_netns
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def host(self, number: int, version: int = 4) -> str:
        network = next(n for n in self._mesh.spec.underlay if n.version == version)
        return str(network.network_address + 200 + number)

    def bring_up(self, hosts: int) -> None:
        for network in self._mesh.spec.underlay:
            flags = ["nodad"] if network.version == 6 else []
            for number in range(hosts):
                address = f"{self.host(number, network.version)}/{network.prefixlen}"
                self.ip("addr", "add", address, "dev", "br0", *flags)
            node = next(a for a in self._mesh.spec.nodes[0].addresses if a.version == network.version)
            pods = next(c for c in self._mesh.spec.nodes[0].pod_cidrs if c.version == network.version)
            self.ip("route", "add", str(pods), "via", str(node), "dev", "br0")
        for version in (4, 6):
            self._listen(version)

    def ip(self, *arguments: str) -> None:
        assert lab.run_in(self.netns, ["ip", *arguments]).wait() == 0

    def _listen(self, version: int) -> None:
        listening = make_socket(self.netns, version=version)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if version == 6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(("::" if version == 6 else "0.0.0.0", WEB))
        listening.listen(64)
        self._serve(listening, self._greet)

    def _greet(self, listening: socket.socket) -> None:
        connection, _ = listening.accept()
        self._serve(connection, self._echo)

    def _echo(self, connection: socket.socket) -> None:
        data = connection.recv(4096)
        if not data:
            raise OSError
        connection.sendall(data)

    def _serve(self, sock: socket.socket, once: Any) -> None:
        def work() -> None:
            with suppress(OSError):
                while True:
                    once(sock)

        self._open.append(sock)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def names(self, address: str, zone: Zone, where: Any = None, port: int = 53) -> None:
        """Serve `zone` at `address`, over UDP and TCP."""
        version = ip_address(address).version
        datagrams = make_socket(where or self.netns, socket.SOCK_DGRAM, version)
        datagrams.bind((address, port))
        listening = make_socket(where or self.netns, version=version)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(64)

        def datagram(sock: socket.socket) -> None:
            wire, client = sock.recvfrom(65535)
            if not wire:
                raise OSError("it was shut down")
            if answer := zone.answer(wire, tcp=False):
                sock.sendto(answer, client)

        def connection(sock: socket.socket) -> None:
            made, _ = sock.accept()
            with made:
                made.settimeout(5)
                size = int.from_bytes(made.recv(2, socket.MSG_WAITALL), "big")
                if answer := zone.answer(made.recv(size, socket.MSG_WAITALL), tcp=True):
                    made.sendall(len(answer).to_bytes(2, "big") + answer)

        self._serve(datagrams, datagram)
        self._serve(listening, connection)

    def close(self) -> None:
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for sock in self._open:
            sock.close()


@contextmanager
def world(mesh: Mesh, hosts: int = 12) -> Iterator[World]:
    made = World(mesh)
    made.bring_up(hosts)
    try:
        yield made
    finally:
        made.close()


def query(
    client: LabWorkload, server: Any, name: str, kind: str = "A", *, tcp: bool = False, timeout: float = 6.0
) -> dns.message.Message | None:
    """The answer, which came from the very server that was asked; None for silence."""
    message = dns.message.make_query(name, kind)
    wire = message.to_wire()
    version = ip_address(str(server)).version
    made = make_socket(client.netns, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM, version)
    with made:
        made.settimeout(timeout)
        try:
            made.connect((str(server), 53))
            if tcp:
                made.sendall(len(wire).to_bytes(2, "big") + wire)
                size = int.from_bytes(made.recv(2, socket.MSG_WAITALL), "big")
                found = made.recv(size, socket.MSG_WAITALL)
            else:
                made.send(wire)
                found = made.recv(65535)
        except (TimeoutError, OSError):
            return None
    answer = dns.message.from_wire(found, raise_on_truncation=False)
    assert message.is_response(answer)
    return answer


def rcode(answer: dns.message.Message | None) -> str:
    return "silence" if answer is None else dns.rcode.to_text(answer.rcode())


def addresses(answer: dns.message.Message | None) -> list[str]:
    assert answer is not None
    return sorted(r.address for s in answer.answer for r in s if s.rdtype in (1, 28))
