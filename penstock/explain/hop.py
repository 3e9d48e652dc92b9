"""One destination of a connection as the way walks it, and what a side of it may lack."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.explain.model import Request
from penstock.explain.parties import Party
from penstock.plan import Direction
from penstock.policy.identities import Member
from penstock.world import Address


@dataclass(frozen=True, slots=True)
class Missing:
    """What a rule would have to allow: of `subject`, in `direction`, for the peer."""

    subject: Member
    direction: Direction
    peer: Member | None
    peer_identity: int
    peer_address: Address
    protocol: str
    port: int
    request: Request | None


@dataclass(frozen=True, slots=True)
class Hop:
    """One destination address, and what is known of both ends there."""

    source: Party
    identity: int
    address: Address
    port: int
    target: Member | None
    source_node: str
    target_node: str
    label: str


def far_end(hop: Hop, direction: Direction) -> Address:
    """The address of the peer, as the side of `direction` sees it."""
    if direction is Direction.EGRESS:
        return hop.address
    assert hop.source.address is not None
    return hop.source.address
