"""What a session says to its client, before it is bytes, and what it tells of the client's answers."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.xds.snapshot import Resource


@dataclass(frozen=True, slots=True)
class Acked:
    """The client has these resources in force, and has dropped the removed ones."""

    type_url: str
    names: tuple[str, ...]
    removed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Nacked:
    """The client refused a response with these resources. With several, a part of them will be sent again."""

    type_url: str
    names: tuple[str, ...]
    message: str


Event = Acked | Nacked


@dataclass(frozen=True, slots=True)
class Response:
    """What is to be said, before it is bytes (`Session.encode`)."""

    type_url: str
    nonce: str
    resources: tuple[Resource, ...] = ()
    removed: tuple[str, ...] = ()
    kept: tuple[Resource, ...] = ()
    version: str = ""
