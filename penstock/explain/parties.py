"""Who is meant: names as people write them → a workload, a Service, an address or a reserved identity."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from penstock.dns.patterns import canonical
from penstock.explain.errors import UnknownPartyError
from penstock.explain.model import PROTOCOLS, Question
from penstock.facts import Facts
from penstock.manifests.document import ObjectKey
from penstock.policy.identities import Member
from penstock.policy.labels import HOST, INGRESS, REMOTE_NODE, RESERVED, WORLD
from penstock.routing.ingresses import HTTP
from penstock.routing.services import ServedPort
from penstock.world import Address, parse_address

SOMEWHERE = IPv4Address("203.0.113.1")
"""Stands for the world where no address is said (RFC 5737)."""
SOMEWHERE6 = IPv6Address("2001:db8::1")
"""The same of IPv6 (RFC 3849)."""
_NAME = re.compile(r"[-\w]+(\.[-\w]+)+\.?")
_NUMBERS = {name: number for number, name in RESERVED.items()}
_DESTINATION = re.compile(r"(?P<who>\[[^\]]+\]|[^:]+)(?::(?P<port>[\w-]+)(?:/(?P<protocol>\w+))?)?")
_DNS = re.compile(r"(?P<name>[^.]+)\.(?P<namespace>[^.]+)\.svc(?:\.cluster\.local)?\.?")


def split(destination: str) -> tuple[str, str | None, str]:
    """``WHO[:PORT[/PROTOCOL]]`` taken apart. Raises UnknownPartyError."""
    try:
        return str(parse_address(destination)), None, "TCP"
    except ValueError:
        pass
    found = _DESTINATION.fullmatch(destination)
    if found is None:
        raise UnknownPartyError(
            f"{destination!r} is not WHO[:PORT[/PROTOCOL]]", hint="such as default/web:80"
        )
    protocol = (found["protocol"] or "TCP").upper()
    if protocol not in PROTOCOLS:
        raise UnknownPartyError(f"there is no protocol {protocol!r}", hint=", ".join(PROTOCOLS))
    return found["who"].strip("[]"), found["port"], protocol


@dataclass(frozen=True, slots=True)
class Party:
    """One end. `identity` is set for a reserved one; `served` for a Service, and then `port` is its port."""

    name: str
    address: Address | None
    member: Member | None = None
    identity: int | None = None
    served: ServedPort | None = None
    dns: str = ""
    """The name by which it is asked for, if it is known by nothing else."""


@dataclass(frozen=True, slots=True)
class Ends:
    source: Party
    target: Party
    port: int
    protocol: str


def name_of(member: Member) -> str:
    return f"{member.namespace}/{member.document.key.name}"


class Parties:
    """Everybody of one World, by name and address."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._by_name = {name_of(m): m for m in facts.members.all}
        self._by_address = {a: m for m in facts.members.all for a in m.addresses}

    def at(self, address: Address) -> Member | None:
        return self._by_address.get(address)

    def named(self, address: Address) -> str:
        """The workload there, or the address itself."""
        member = self.at(address)
        return name_of(member) if member else str(address)

    def workload(self, text: str) -> Member:
        """The workload of that name or address. Raises UnknownPartyError."""
        member = self.at(parse_address(text)) if _is_address(text) else self._workload(text)
        if member is None:
            raise UnknownPartyError(
                f"no workload is called {text!r}", hint="penstock endpoint list shows them"
            )
        return member

    def ends(self, question: Question) -> Ends:
        """Both ends of what is asked. Raises UnknownPartyError."""
        source = self._party(question.source)
        target, port = self._target(question)
        if target.address is None or source.address is None:
            raise UnknownPartyError(f"{(source if source.address is None else target).name} has no address")
        if source.address.version != target.address.version:
            source = self._in_family(source, target.address.version)
        if source.address == target.address:
            raise UnknownPartyError("what a workload says to itself never leaves it, and nobody judges it")
        if question.protocol == "ICMP" and target.address.version == 6:
            return Ends(source, target, 128 if question.port is None else port, "ICMPV6")
        return Ends(source, target, port, question.protocol)

    def _in_family(self, party: Party, version: int) -> Party:
        if party.member is None:
            if party.identity is None:
                raise UnknownPartyError("one is an IPv4 address and the other an IPv6 address")
            return party
        for address in party.member.addresses:
            if address.version == version:
                return Party(party.name, address, party.member)
        raise UnknownPartyError(f"{party.name} has no IPv{version} address")

    def _party(self, text: str) -> Party:
        if text.removeprefix("reserved:") in _NUMBERS:
            return self._reserved(_NUMBERS[text.removeprefix("reserved:")])
        try:
            address = parse_address(text)
        except ValueError:
            member = self._workload(text)
            if member is None:
                raise self._unknown(text) from None
            if not member.present:
                raise UnknownPartyError(
                    f"{name_of(member)} is not there: its network namespace is absent"
                ) from None
            return Party(name_of(member), member.addresses[0] if member.addresses else None, member)
        member = self.at(address)
        return Party(name_of(member) if member else text, address, member)

    def _reserved(self, number: int) -> Party:
        name = f"reserved:{RESERVED[number]}"
        known: dict[int, list[Address]] = {
            WORLD: [SOMEWHERE],
            HOST: list(self._facts.world.node_addresses) or [IPv4Address("192.0.2.1")],
        }
        if number == INGRESS:
            raise UnknownPartyError(
                "Gateways send what their routes say", hint="ask for the way through one: gateway/NAME:PORT"
            )
        if number == REMOTE_NODE:
            known[number] = list(self._remote_nodes())
        addresses = known.get(number)
        if not addresses:
            raise UnknownPartyError(
                f"{name} has no address here", hint="no Node object of another node gives one"
            )
        return Party(name, addresses[0], None, number)

    def _remote_nodes(self) -> Iterable[Address]:
        from penstock.manifests.kinds import Node

        for document, node in self._facts.world.of_kind(Node):
            if document.key.name != self._facts.world.node:
                yield from (parse_address(a.address) for a in node.status.addresses if a.type == "InternalIP")

    def _workload(self, text: str) -> Member | None:
        if "/" in text:
            return self._by_name.get(text)
        if f"default/{text}" in self._by_name:
            return self._by_name[f"default/{text}"]
        found = [m for name, m in self._by_name.items() if name.partition("/")[2] == text]
        if len(found) > 1:
            names = ", ".join(map(name_of, found))
            raise UnknownPartyError(f"{text} may be any of {names}", hint="say NAMESPACE/NAME")
        return found[0] if found else None

    def _service(self, text: str, namespace: str) -> list[ServedPort]:
        if dns := _DNS.fullmatch(text):
            text = f"{dns['namespace']}/{dns['name']}"
        try:
            vip = parse_address(text)
        except ValueError:
            wanted = text if "/" in text else f"{namespace}/{text}"
            keys = ((s, s.document.key) for s in self._facts.served.ports)
            return [s for s, key in keys if f"{key.namespace}/{key.name}" == wanted]
        return [s for s in self._facts.served.ports if s.vip == vip]

    def _target(self, question: Question) -> tuple[Party, int]:
        text = question.destination
        sender = self._party(question.source)
        if edge := self._edge(
            text, {a.version for a in sender.member.addresses} if sender.member else {4, 6}
        ):
            return edge, self._port(edge, question)
        served = self._service(text, sender.member.namespace if sender.member else "default")
        versions = {a.version for a in sender.member.addresses} if sender.member else {4, 6}
        fitting = [
            s
            for s in served
            if s.port.protocol == question.protocol
            and s.family in versions
            and question.port in (None, str(s.port.port), s.port.name)
        ]
        if fitting and (question.port is not None or len({s.port.port for s in fitting}) == 1):
            return self._as_party(fitting[0]), fitting[0].port.port
        try:
            party = self._party(text)
        except UnknownPartyError:
            if not served and _NAME.fullmatch(text):
                address = SOMEWHERE6 if versions == {6} else SOMEWHERE
                return Party(canonical(text), address, dns=canonical(text)), self._port_of_name(question)
            if not served:
                raise
            ports = ", ".join(sorted({f"{s.port.port}/{s.port.protocol}" for s in served}))
            raise UnknownPartyError(f"which port of Service {text}? It has {ports}") from None
        if party.member is not None and sender.address is not None and party.address is not None:
            theirs = next((a for a in party.member.addresses if a.version in versions), None)
            if theirs is not None and party.address not in map(
                parse_address, (text,) if _is_address(text) else ()
            ):
                party = Party(party.name, theirs, party.member)
        return party, self._port(party, question)

    def _edge(self, text: str, versions: set[int]) -> Party | None:
        """``gateway/[NAMESPACE/]NAME``, and ``ingress``: who is asked by those addresses."""
        kind, _, name = text.partition("/")
        key = ObjectKey("Gateway", *(name if "/" in name else f"default/{name}").split("/", 1))
        if kind == "gateway" and name:
            if key not in self._facts.edge.statuses:
                raise UnknownPartyError(f"there is no Gateway {key.namespace}/{key.name}")
            addresses: Any = self._facts.edge.statuses[key].extra.get("addresses", ())
        elif text == "ingress":
            addresses = [a for e in self._facts.edge.listeners if e.name == HTTP for a in e.addresses]
            key = ObjectKey("Ingress", "", "")
        else:
            return None
        found = next((a for a in addresses if a.version in versions), None)
        if found is None:
            raise UnknownPartyError(
                f"{text} has no address that {' or '.join(f'IPv{v}' for v in versions)} reaches"
            )
        return Party(str(key) if key.name else "Ingresses", found)

    def _as_party(self, served: ServedPort) -> Party:
        key = served.document.key
        address = served.vip or next((b.address for b in self._facts.served.of(served).backends), None)
        if address is None:
            raise UnknownPartyError(
                f"Service {key.namespace}/{key.name} has neither an address nor an endpoint"
            )
        return Party(f"Service {key.namespace}/{key.name}", address, served=served)

    def _port_of_name(self, question: Question) -> int:
        if question.port is None or not question.port.isdigit() or not 0 < int(question.port) < 65536:
            raise UnknownPartyError(f"which port of {question.destination}?", hint="say NAME:PORT")
        return int(question.port)

    def _port(self, party: Party, question: Question) -> int:
        text = question.port
        if question.protocol == "ICMP":
            return int(text) if text and text.isdigit() else 8
        if text is not None and text.isdigit() and 0 < int(text) < 65536:
            return int(text)
        declared = party.member.ports if party.member else ()
        of_protocol = [p for p in declared if p[2] == question.protocol]
        if text is None and len(of_protocol) == 1:
            return of_protocol[0][1]
        for name, number, _ in of_protocol:
            if text == name:
                return number
        ports = ", ".join(f"{number} ({name})" if name else str(number) for name, number, _ in of_protocol)
        wrong = f"{party.name} has no port {text!r}" if text is not None else f"which port of {party.name}?"
        raise UnknownPartyError(wrong, hint=f"it declares {ports}" if ports else "say WHO:PORT")

    def _unknown(self, text: str) -> UnknownPartyError:
        hint = "a workload or Service (NAME or NAMESPACE/NAME), gateway/NAME, an address, world or host"
        return UnknownPartyError(f"nobody is called {text!r}", hint=hint)


def _is_address(text: str) -> bool:
    try:
        parse_address(text)
    except ValueError:
        return False
    return True
