"""DNS messages: reading a question, making an answer, and what an answer says of addresses. Pure.

Source: RFC 1035; RFC 6891 (EDNS); RFC 9715 (sizes over UDP).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from penstock.dns.patterns import canonical
from penstock.dns.question import Answered

SERVICE_TTL = 5
"""Seconds that names of Services may be remembered: their endpoints come and go."""
PLAIN_SIZE, LARGEST = 512, 1232
_CHAIN = 16


@dataclass(frozen=True, slots=True)
class Question:
    """What a message asks. `name` is canonical, `size` what the client takes over UDP."""

    message: dns.message.Message
    name: str
    kind: str
    size: int

    @property
    def transfer(self) -> bool:
        return self.kind in ("AXFR", "IXFR")


def load() -> None:
    """Have the code of every kind of record: later there may be no right to read it."""
    dns.rdata.load_all_types()  # type: ignore[no-untyped-call]


def read(wire: bytes) -> Question | None:
    """None for what is no question, or asks for several things at once."""
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None
    if message.flags & dns.flags.QR or message.opcode() != dns.opcode.QUERY or len(message.question) != 1:
        return None
    asked = message.question[0]
    size = max(message.payload, PLAIN_SIZE) if message.edns >= 0 else PLAIN_SIZE
    kind = dns.rdatatype.to_text(asked.rdtype)
    return Question(message, canonical(asked.name.to_text()), kind, min(size, LARGEST))


def refusal(question: Question, rcode: str, *, truncated: bool = False) -> bytes:
    """An answer that says no more than that."""
    made = dns.message.make_response(question.message, recursion_available=True)
    made.set_rcode(dns.rcode.from_text(rcode))
    if truncated:
        made.flags |= dns.flags.TC
    return made.to_wire()


def answer(question: Question, found: Answered) -> bytes:
    """What the mesh itself says, at most as much as the client takes."""
    made = dns.message.make_response(question.message, recursion_available=True)
    made.flags |= dns.flags.AA
    asked = question.message.question[0]
    if not found.exists:
        made.set_rcode(dns.rcode.NXDOMAIN)
        return made.to_wire()
    texts: list[tuple[str, str]] = []
    if question.kind in ("A", "AAAA", "ANY"):
        texts = [(_kind(a), a) for a in found.addresses if question.kind in (_kind(a), "ANY")]
    if question.kind in ("SRV", "ANY"):
        texts += [("SRV", f"0 100 {port} {host}.") for port, host in found.servers]
        for host, address in found.hosts:
            made.additional.append(_record(dns.name.from_text(host), _kind(address), address))
    if question.kind in ("PTR", "ANY") and found.pointer:
        texts.append(("PTR", f"{found.pointer}."))
    for kind in dict.fromkeys(kind for kind, _ in texts):
        made.answer.append(_record(asked.name, kind, *(text for each, text in texts if each == kind)))
    return made.to_wire()


def _record(name: dns.name.Name, kind: str, *texts: str) -> dns.rrset.RRset:
    return dns.rrset.from_text(name, SERVICE_TTL, dns.rdataclass.IN, dns.rdatatype.from_text(kind), *texts)


def _kind(address: str) -> str:
    return "AAAA" if ip_address(address).version == 6 else "A"


def answers(question: Question, wire: bytes) -> dns.message.Message | None:
    """`wire` as the answer to just this question; None if it is something else."""
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True, raise_on_truncation=False)
    except (dns.exception.DNSException, ValueError):
        return None
    return message if question.message.is_response(message) else None


def told(question: Question, message: dns.message.Message) -> tuple[tuple[str, ...], int]:
    """The addresses that the asked name has by an answer, and for how many seconds: the least of its chain.

    A record that the chain of aliases does not lead to says nothing of the name.
    """
    name = question.message.question[0].name
    least: list[int] = []
    for _ in range(_CHAIN):
        addresses = []
        alias = None
        for rrset in message.answer:
            if rrset.name != name or rrset.rdclass != dns.rdataclass.IN:
                continue
            if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
                addresses += [str(ip_address(record.address)) for record in rrset]
                least.append(rrset.ttl)
            elif rrset.rdtype == dns.rdatatype.CNAME:
                alias = rrset[0].target
                least.append(rrset.ttl)
        if addresses:
            return tuple(dict.fromkeys(addresses)), min(least)
        if alias is None:
            break
        name = alias
    return (), 0
