"""One side's word at L4: what the entries of one subject say, and which policies stand behind them.

A subject of this node is asked in the kernel; one of another node in the entries that the same manifests make
there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from penstock.dns.patterns import Names
from penstock.explain.kernel import Judged, Kernel, judged
from penstock.explain.model import PROTOCOLS
from penstock.explain.parties import name_of
from penstock.facts import Facts
from penstock.manifests.document import ObjectKey, Origin
from penstock.manifests.kinds import Workload
from penstock.plan import AUDIT_VIEW, Direction, Verdict
from penstock.policy.entries import ANY, Stance, entries
from penstock.policy.identities import Member, meshed_nodes
from penstock.policy.labels import DNS, RESERVED, WORLD
from penstock.policy.prefixes import is_prefix
from penstock.policy.server_names import union
from penstock.world import Address

Origins = tuple[tuple[ObjectKey, Origin], ...]


def by(origins: Origins) -> str:
    """Policies with file and line, for a sentence."""
    return ", ".join(f"{key} ({origin})" for key, origin in origins)


_VERBS = {Verdict.ALLOW: "allowed", Verdict.REDIRECT: "steered to the proxy", Verdict.DENY: "denied"}
_VERBS[Verdict.NAMES] = "allowed for TLS with certain server names"


@dataclass(frozen=True, slots=True)
class Word:
    """What one side says, in words too. `by_default` if nothing was found, and so it is denied."""

    verdict: Verdict
    text: str
    origins: Origins
    by_default: bool = False
    authenticated: bool = False
    """Between nodes only over mesh TLS."""
    dns: bool = False
    """The DNS proxy is steered to, which judges names."""
    names: Names = ()
    """The server names that TLS may have."""


class Sides:
    def __init__(self, facts: Facts, kernel: Kernel) -> None:
        self._facts, self._kernel = facts, kernel
        self._meshed = meshed_nodes(facts.world)
        self._assumed: dict[Address, tuple[int, ...]] = {}

    def assume(self, address: Address, lists: tuple[int, ...]) -> None:
        """Take `address` as learned under these lists of names."""
        self._assumed[address] = lists

    # --- who judges -----------------------------------------------------------------------------------

    def node_of(self, member: Member | None) -> str:
        """The node whose kernel judges this workload; empty where none does."""
        if member is None:
            return ""
        if member.local:
            return self._facts.world.node if member.attachment is not None else ""
        workload = member.document.value
        assert isinstance(workload, Workload)
        node = workload.spec.node or ""
        return node if node in self._meshed and member.netns is not None else ""

    def meshed(self, member: Member | None) -> bool:
        """Whether other nodes take the workload as one of the mesh."""
        if member is None:
            return False
        return member.mesh or (member.local and self._facts.world.node in self._meshed)

    # --- L4 -------------------------------------------------------------------------------------------

    def word(
        self,
        member: Member,
        direction: Direction,
        peer: int,
        protocol: str,
        port: int,
        address: Address | None = None,
    ) -> Word:
        """`address` is the peer's: names may open one that is nobody's (toFQDNs)."""
        number = PROTOCOLS[protocol]
        found = self._judge(member, direction, peer, number, port)
        outside = self.outside(peer)
        if direction is Direction.EGRESS and address is not None and outside:
            found = self._by_name(found, member, address, number, port)
        if found.key is None:
            closers = self.closers(member, direction)
            who = f" by {by(closers)}" if closers else ""
            text = f"no entry for {self.peer(peer)} at {protocol} {port}: default deny{who}"
            names = self._names(member) if direction is Direction.EGRESS and outside else ()
            if names:
                text += f"; it has asked for no name of {', '.join(names)} that has this address"
            return Word(found.verdict, text, closers, by_default=True)
        if not found.known:
            text = (
                f"entry for {self._entry(found)}: {_VERBS[found.verdict]}, by a change that is being applied"
            )
            return Word(found.verdict, text, (), authenticated=found.authenticated)
        if not found.origins:
            why = f"no policy closes the {direction.name.lower()} of {name_of(member)}"
            return Word(found.verdict, f"{_VERBS[found.verdict]}: {why}", ())
        proof = ", authenticated" if found.authenticated else ""
        dns = found.dns and found.verdict is Verdict.REDIRECT
        verb = "steered to the DNS proxy" if dns else _VERBS[found.verdict]
        text = f"entry for {self._entry(found)}: {verb}{proof} by {by(found.origins)}"
        proven = found.authenticated
        return Word(found.verdict, text, found.origins, authenticated=proven, dns=dns, names=found.names)

    def outside(self, identity: int) -> bool:
        """Whether it is nobody's of the mesh: only addresses of such may a name open."""
        return identity == WORLD or identity in self._facts.members.index.prefixes.identities.values()

    def _by_name(self, found: Judged, member: Member, address: Address, protocol: int, port: int) -> Judged:
        """`found`, or what a rule for names says more strongly of an address that was asked for."""
        here = self._kernel.endpoint(member.addresses[0]) if member.addresses else None
        if found.verdict is Verdict.DENY and found.key is not None:
            return found
        lists = self._assumed.get(address, self._kernel.names(here.ifindex, address) if here else ())
        for number in lists:
            named = self._judge(member, Direction.EGRESS, number, protocol, port)
            if named.key is None or named.key.identity != number:
                continue
            both = found.key is not None and {found.verdict, named.verdict} == {Verdict.NAMES}
            if both:
                origins = tuple(dict.fromkeys((*found.origins, *named.origins)))
                found = replace(found, origins=origins, names=union(found.names, named.names))
            elif found.key is None or named.verdict.strength > found.verdict.strength:
                found = named
        return found

    def _names(self, member: Member) -> tuple[str, ...]:
        """What rules for names allow a workload."""
        rules = self._stance(member, Direction.EGRESS).rules
        return tuple(sorted({name for r in rules if r.peers is not None for name in r.peers.names}))

    def audited(
        self, member: Member, direction: Direction, peer: int, protocol: str, port: int
    ) -> Word | None:
        """What it would say with the policies in audit enforced, if that is not to allow it."""
        stances = self._facts.audited
        if stances is None or stances.of(direction)[member.subject] == self._stance(member, direction):
            return None
        found = self._judge(member, direction, peer, PROTOCOLS[protocol], port, audit=True)
        if found.verdict is Verdict.ALLOW:
            return None
        if found.verdict in (Verdict.REDIRECT, Verdict.NAMES):
            what = "each request" if found.verdict is Verdict.REDIRECT else "the server name"
            return Word(found.verdict, f"a policy in audit looks at {what}", found.origins)
        origins = found.origins or self.closers(member, direction, audit=True)
        who = f" by {by(origins)}" if origins else ""
        return Word(found.verdict, f"a policy in audit would deny it{who}; it is let through", origins)

    def _stance(self, member: Member, direction: Direction) -> Stance:
        return self._facts.stances.of(direction)[member.subject]

    def _judge(
        self,
        member: Member,
        direction: Direction,
        peer: int,
        protocol: int,
        port: int,
        *,
        audit: bool = False,
    ) -> Judged:
        view = AUDIT_VIEW if audit else 0
        if member.local and member.attachment is not None:
            here = self._kernel.endpoint(member.addresses[0])
            subject = here.subject if here is not None else member.subject
            return self._kernel.policy(subject | view, direction, peer, protocol, port)
        facts = self._facts
        stances = facts.audited if audit and facts.audited is not None else facts.stances
        stance = stances.of(direction)[member.subject]
        table = entries(stance, member, direction, facts.members, facts.by_identity)
        return judged(table, member.subject, direction, peer, protocol, port)

    def _entry(self, found: Judged) -> str:
        key = found.key
        assert key is not None
        peer = "any peer" if key.identity == ANY else self.peer(key.identity)
        names = {number: name for name, number in PROTOCOLS.items()}
        if not key.protocol:
            return peer
        last = key.port + (1 << (16 - key.port_bits)) - 1
        ports = (
            "any port" if not key.port_bits else str(key.port) if last == key.port else f"{key.port}–{last}"
        )
        return f"{peer}, {names.get(key.protocol, key.protocol)} {ports}"

    def peer(self, identity: int) -> str:
        if identity == DNS:
            return "the node's own DNS"
        if identity in RESERVED:
            return f"reserved:{RESERVED[identity]}"
        if identity in self._facts.members.index.nodes:
            return f"node {self._facts.members.index.nodes[identity]}"
        lists = self._facts.members.index.names.items()
        names = next((names for names, number in lists if number == identity), ())
        if names:
            return f"names {', '.join(names)}"
        if is_prefix(identity):
            networks = self._facts.members.index.prefixes.identities.items()
            return next((str(n) for n, number in networks if number == identity), f"identity {identity}")
        everyone = sorted(name_of(m) for m in self._facts.by_identity.get(identity, ()))
        who = (
            everyone[0]
            if len(everyone) == 1
            else f"{everyone[0]} and {len(everyone) - 1} more"
            if everyone
            else ""
        )
        return f"identity {identity}" + (f" ({who})" if who else "")

    def closers(self, member: Member, direction: Direction, *, audit: bool = False) -> Origins:
        """The policies that close this direction of a workload for what they do not name."""
        return tuple(
            (document.key, document.origin())
            for document, specs in self._facts.specs()
            if any(
                direction in spec.default_deny and spec.audit <= audit and spec.selects(member.labels)
                for spec in specs
            )
        )
