"""Listeners that look at server names: one for each list, or pair of lists, that a source class may be under.

The name of a listener says its lists in full, so that one that still carries connections can be kept when no
rule asks for it any more. What is wanted is more than what will be met: which lists apply to a connection,
the kernel finds by its port and peer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from penstock.dns.patterns import Names
from penstock.plan import AUDIT_VIEW, Direction, MeshMode, PolicyEntry, PolicyKey, Verdict
from penstock.policy.entries import ANY
from penstock.policy.identities import Member, Members
from penstock.policy.labels import DNS, HOST, INGRESS, WORLD
from penstock.policy.mesh_tls import MeshModes
from penstock.policy.prefixes import is_prefix
from penstock.policy.server_names import joined
from penstock.routing.model import ListenerKind

Entries = Mapping[tuple[int, Direction], Mapping[PolicyKey, PolicyEntry]]
Lists = dict[int, set[Names]]
"""Peer → the lists that entries for it have."""

KINDS = (ListenerKind.NAMES, ListenerKind.TLS_NAMES, ListenerKind.NAMES_AUDIT)
_WORDS = {kind.name.lower().replace("_", "-"): kind for kind in KINDS}


class Wanted(NamedTuple):
    """A listener, by what it is told by."""

    kind: ListenerKind
    source_class: int
    destination: int = 0
    outward: Names = ()
    inward: Names = ()

    @property
    def name(self) -> str:
        name = f"class-{self.source_class}/{self.kind.name.lower().replace('_', '-')}"
        if self.kind in KINDS:
            return f"{name}/{self.destination}/{','.join(self.outward)}/{','.join(self.inward)}"
        return f"{name}/{self.destination}" if self.destination else name


def named(name: str) -> Wanted | None:
    """What a listener of these kinds is told by; None for any other."""
    parts = name.removeprefix("class-").split("/")
    if not name.startswith("class-") or len(parts) != 5 or parts[1] not in _WORDS:
        return None
    outward, inward = (tuple(part.split(",")) if part else () for part in parts[3:])
    return Wanted(_WORDS[parts[1]], int(parts[0]), int(parts[2]), outward, inward)


def _lists(table: Mapping[PolicyKey, PolicyEntry], *, audit: bool) -> Lists:
    found: Lists = defaultdict(set)
    for key, entry in table.items():
        if entry.verdict is Verdict.NAMES and bool(key.subject & AUDIT_VIEW) is audit:
            found[key.identity].add(entry.names)
    return found


def _about(lists: Lists, peer: int) -> set[Names]:
    """The lists under which somebody may be towards `peer`; the empty one where none is."""
    return {(), *lists.get(ANY, ()), *lists.get(peer, ())}


def _outside(peer: int, members: Members) -> bool:
    return peer in (ANY, WORLD) or is_prefix(peer)


def _families(lists: Lists, members: Members) -> frozenset[Names]:
    """What somebody may be under towards addresses of nobody: lists for names meet each other there."""
    of_names = members.index.names.values()
    by_name = frozenset().union(*(lists[peer] for peer in lists if peer in of_names))
    others = frozenset().union(
        *(lists[peer] for peer in lists if peer not in of_names and _outside(peer, members))
    )
    return joined((*by_name, *others)) if by_name else others


def families(members: Members, entries: Entries) -> Iterator[frozenset[Names]]:
    """Lists that may meet in the kernel, workload by workload."""
    for member in {m.subject: m for m in members.local()}.values():
        for audit in (False, True):
            lists = _lists(entries[member.subject, Direction.EGRESS], audit=audit)
            if lists:
                yield _families(lists, members)


def names_listeners(members: Members, entries: Entries, modes: MeshModes) -> set[Wanted]:
    """Those that this node's workloads need, as senders and as receivers."""
    found: set[Wanted] = set()
    local = {m.subject: m for m in members.local()}.values()
    identities = {m.identity for m in local}
    speaking = {i for i, m in members.meshed().items() if modes.somewhere(m) - {MeshMode.OFF}}
    for audit in (False, True):
        kind = ListenerKind.NAMES_AUDIT if audit else ListenerKind.NAMES
        outward = {m.identity: _lists(entries[m.subject, Direction.EGRESS], audit=audit) for m in local}
        for source, lists in outward.items():
            found |= {Wanted(kind, source, 0, each) for each in frozenset().union(*lists.values())}
            found |= {Wanted(kind, source, WORLD, each) for each in _families(lists, members)}
            if not audit and lists:
                found |= {
                    Wanted(kind, source, peer, each)
                    for peer in speaking
                    for each in _about(lists, peer)
                    if each
                }
        for member in local:
            inward = _lists(entries[member.subject, Direction.INGRESS], audit=audit)
            for peer in _peers(inward, members):
                received = _about(inward, peer) - {()}
                sent = _about(outward[peer], member.identity) if peer in identities else {()}
                found |= {Wanted(kind, peer, 0, o, i) for o in sent for i in received}
                if not audit and peer in speaking and modes.somewhere(member) - {MeshMode.OFF}:
                    found |= {Wanted(ListenerKind.TLS_NAMES, peer, 0, (), i) for i in received}
    return found


def _peers(inward: Lists, members: Members) -> Iterable[int]:
    # Nothing steers what the node's own processes send, nor what its Gateways do.
    found = set(members.labels) if ANY in inward else set(inward)
    return found - {HOST, DNS, INGRESS}


def members_borrow(members: Iterable[Member]) -> bool:
    """Whether their addresses mean something outside of the node: those behind a bridge are masqueraded."""
    return all(not link.bridge for member in members if member.attachment for link in member.attachment.links)
