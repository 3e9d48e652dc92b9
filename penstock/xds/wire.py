"""Responses as bytes, joined from the bytes of their resources.

A resource is serialised once, when it is compiled; a response to one of a hundred clients only joins what is
there. It is joined when the client is ready to take it, so that what waits for a slow client costs references
and no copies.

Field numbers: envoy/service/discovery/v3/discovery.proto. Encoding: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from penstock.xds.snapshot import Resource

_RESOURCE = "type.googleapis.com/envoy.service.discovery.v3.Resource"
_NANOS = 1_000_000_000


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _entry(number: int, value: bytes) -> bytes:
    """A length-delimited field of a list."""
    return b"%c%b%b" % (number << 3 | 2, _varint(len(value)), value)


def _bytes(number: int, value: bytes) -> bytes:
    """A length-delimited field; nothing for nothing, as proto3 does."""
    return _entry(number, value) if value else b""


@lru_cache(maxsize=1024)
def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _any(type_url: str, body: bytes) -> bytes:
    return _text(1, type_url) + _bytes(2, body)


def _ttl(seconds: float | None) -> bytes:
    if seconds is None:
        return b""
    whole, nanos = divmod(round(seconds * _NANOS), _NANOS)
    parts = (b"\x08" + _varint(whole) if whole else b"") + (b"\x10" + _varint(nanos) if nanos else b"")
    return b"\x32" + _varint(len(parts)) + parts


def _resource(item: Resource, *, ttl: bool, kept: bool) -> bytes:
    """An envoy.service.discovery.v3.Resource; `kept` leaves the content out (a heartbeat)."""
    content = b"" if kept else _bytes(2, _any(item.type_url, item.body))
    name = _bytes(3, item.name.encode())
    return _bytes(1, item.version.encode()) + content + name + (_ttl(item.ttl) if ttl else b"")


def delta_response(
    type_url: str,
    nonce: str,
    resources: Iterable[Resource],
    removed: Iterable[str] = (),
    kept: Iterable[Resource] = (),
    *,
    ttl: bool = False,
) -> bytes:
    """A DeltaDiscoveryResponse. `ttl`: the client understands times to live."""
    parts = [_entry(2, _resource(item, ttl=ttl, kept=False)) for item in resources]
    parts += [_entry(2, _resource(item, ttl=ttl, kept=True)) for item in kept]
    parts += [_text(4, type_url), _bytes(5, nonce.encode())]
    parts += [_entry(6, name.encode()) for name in removed]
    return b"".join(parts)


def _whole(item: Resource, *, ttl: bool) -> bytes:
    """A resource among those of a DiscoveryResponse; the plain form is kept for the next client."""
    if ttl and item.ttl is not None:
        return _bytes(2, _any(_RESOURCE, _resource(item, ttl=True, kept=False)))
    if not item.wire:
        item.keep_wire(_bytes(2, _any(item.type_url, item.body)))
    return item.wire


def state_response(
    type_url: str,
    version: str,
    nonce: str,
    resources: Iterable[Resource],
    kept: Iterable[Resource] = (),
    *,
    ttl: bool = False,
) -> bytes:
    """A DiscoveryResponse, of the state-of-the-world variant."""
    parts = [_bytes(1, version.encode())]
    parts += [_whole(item, ttl=ttl) for item in resources]
    parts += [_bytes(2, _any(_RESOURCE, _resource(item, ttl=ttl, kept=True))) for item in kept]
    parts += [_text(4, type_url), _bytes(5, nonce.encode())]
    return b"".join(parts)
