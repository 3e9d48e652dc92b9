"""Rules of netfilter, in tables of our own, that keep others' source NAT off the proxy's connections.

A backend must see the client's address, which the proxy borrows. Docker masquerades what leaves one of its
networks for another by the *source* address, so also what the proxy sends in a container's name. Its rules
stay as they are: ours come a step earlier in the same hook, and bind the connection to the address that it
has. What has a binding is not asked for again, whoever wrote the later rules (iptables of both kinds,
nftables).

And what a published port's DNAT has brought to a container, and the programs took back to give it to the
proxy, is known to netfilter by that DNAT: seen a second time it would be taken for another connection, in
the way of the first. It is not tracked again.

A table beside that keeps all but other nodes from the tunnels between nodes (tunnel.py).

Written by netlink, since a node need not have `nft`. Needs nf_tables in the kernel (a module of every
distribution).

Source: nfnetlink, include/uapi/linux/netfilter/nf_tables.h; net/netfilter/nf_nat_core.c, nf_nat_inet_fn().
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection, Iterable

from penstock.errors import HostError
from penstock.world import Address

TABLE, GUARD = "penstock", "penstock_tunnel"
UPSTREAM, BROUGHT, MARK_MASK = 0xB00, 0x700, 0xF00
"""Of the proxy's sockets towards backends, and of what was taken back (ARCHITECTURE.md)."""
BEFORE_NAT, RAW = 99, -300
"""One before NF_IP_PRI_NAT_SRC, where source NAT is done; NF_IP_PRI_RAW, before tracking."""

_NETLINK_NETFILTER = 12
_HEADER, _GENERIC, _ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct("!BBH"), struct.Struct("=HH")
_REQUEST, _ACK, _CREATE, _APPEND = 0x1, 0x4, 0x400, 0x800
_ERROR = 2
_BATCH_BEGIN, _BATCH_END = 16, 17
_SUBSYSTEM = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE, _DESTROY_TABLE = 0, 3, 6, 26
_NESTED = 0x8000
_PRE_ROUTING, _POST_ROUTING = 0, 4
_META_MARK, _META_PROTOCOL = 3, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_DROP, _ACCEPT = 0, 1
_REGISTER = 1
_SOURCES: dict[int, tuple[int, int]] = {socket.AF_INET: (12, 4), socket.AF_INET6: (8, 16)}
"""Where a source address stands in its header: offset, length. The families' numbers are netfilter's too."""


def put_up() -> None:
    """Make the rules, anew where they are. Of the network namespace that the calling thread is in.

    Raises HostError where the kernel has no nf_tables, or we may not.
    """
    _send(message for family in _SOURCES for message in (_gone(family), *_rules(family)))


def take_down() -> None:
    """Remove them; twice is fine. Raises HostError."""
    _send(_gone(family) for family in _SOURCES)


def guard(port: int, senders: Collection[Address]) -> None:
    """Drop datagrams to `port`, whoever they are for, but for those of `senders`; instead of what was.

    All that comes in is meant, also what is only passed on: a sender behind this node may become the node
    itself by source NAT. Raises HostError.
    """
    _send(
        message
        for family in _SOURCES
        for message in (
            _message(_DESTROY_TABLE, family, _text(1, GUARD)),
            *_guard(family, port, [a for a in senders if (a.version == 4) == (family == socket.AF_INET)]),
        )
    )


def unguard() -> None:
    """Twice is fine. Raises HostError."""
    _send(_message(_DESTROY_TABLE, family, _text(1, GUARD)) for family in _SOURCES)


def _guard(family: int, port: int, senders: Collection[Address]) -> Iterable[bytes]:
    register = _number(1, _REGISTER)
    offset, length = _SOURCES[family]

    def same(value: bytes) -> bytes:
        return _expression("cmp", register + _number(2, 0) + _value(3, value))

    def payload(header: int, at: int, size: int) -> bytes:
        return _expression("payload", register + _number(2, header) + _number(3, at) + _number(4, size))

    def verdict(code: int) -> bytes:
        # Register 0 holds verdicts.
        return _expression("immediate", _number(1, 0) + _nest(2, _nest(2, _number(1, code))))

    protocol = _expression("meta", register + _number(2, _META_PROTOCOL)) + same(bytes([socket.IPPROTO_UDP]))
    to_port = payload(_TRANSPORT_HEADER, 2, 2) + same(struct.pack("!H", port))
    yield _message(_NEW_TABLE, family, _text(1, GUARD))
    yield from _chain(family, "prerouting", "filter", _PRE_ROUTING, RAW, table=GUARD)
    for sender in senders:
        of_it = payload(_NETWORK_HEADER, offset, length) + same(sender.packed)
        yield _statements(family, GUARD, "prerouting", protocol + to_port + of_it + verdict(_ACCEPT))
    yield _statements(family, GUARD, "prerouting", protocol + to_port + verdict(_DROP))


def _statements(family: int, table: str, chain: str, expressions: bytes) -> bytes:
    return _message(_NEW_RULE, family, _text(1, table) + _text(2, chain) + _nest(4, expressions))


def _rules(family: int) -> Iterable[bytes]:
    offset, length = _SOURCES[family]
    source = _expression(
        "payload",
        _number(1, _REGISTER) + _number(2, _NETWORK_HEADER) + _number(3, offset) + _number(4, length),
    )
    same = _expression("nat", _number(1, 0) + _number(2, family) + _number(3, _REGISTER))
    yield _message(_NEW_TABLE, family, _text(1, TABLE))
    yield from _chain(family, "postrouting", "nat", _POST_ROUTING, BEFORE_NAT)
    yield _rule(family, "postrouting", UPSTREAM, source + same)
    yield from _chain(family, "prerouting", "filter", _PRE_ROUTING, RAW)
    yield _rule(family, "prerouting", BROUGHT, _expression("notrack", b""))


def _chain(
    family: int, name: str, kind: str, hook: int, priority: int, table: str = TABLE
) -> Iterable[bytes]:
    where = _nest(4, _number(1, hook) + _attribute(2, struct.pack("!i", priority)))
    yield _message(_NEW_CHAIN, family, _text(1, table) + _text(3, name) + where + _text(7, kind))


def _rule(family: int, chain: str, mark: int, statements: bytes) -> bytes:
    """One that holds for what bears `mark`."""
    native = struct.Struct("=I").pack
    register = _number(1, _REGISTER)
    mask = _value(4, native(MARK_MASK)) + _value(5, native(0))
    expressions = (
        _expression("meta", register + _number(2, _META_MARK)),
        _expression("bitwise", register + _number(2, _REGISTER) + _number(3, 4) + mask),
        _expression("cmp", register + _number(2, 0) + _value(3, native(mark))),
        statements,
    )
    return _statements(family, TABLE, chain, b"".join(expressions))


def _gone(family: int) -> bytes:
    return _message(_DESTROY_TABLE, family, _text(1, TABLE))


def _message(kind: int, family: int, body: bytes) -> bytes:
    flags = _REQUEST | _ACK | (0 if kind == _DESTROY_TABLE else _CREATE)
    # A rule else comes before those that are there.
    flags |= _APPEND if kind == _NEW_RULE else 0
    return _packed(_SUBSYSTEM << 8 | kind, flags, _GENERIC.pack(family, 0, 0) + body)


def _packed(kind: int, flags: int, body: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, 0, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value))


def _value(kind: int, value: bytes) -> bytes:
    return _nest(kind, _attribute(1, value))


def _expression(name: str, data: bytes) -> bytes:
    return _nest(1, _text(1, name) + _nest(2, data))


def _send(messages: Iterable[bytes]) -> None:
    """All or nothing."""
    parts = list(messages)
    batch = _GENERIC.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM)
    whole = _packed(_BATCH_BEGIN, _REQUEST, batch) + b"".join(parts) + _packed(_BATCH_END, _REQUEST, batch)
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as sock:
            sock.bind((0, 0))
            sock.settimeout(5.0)
            sock.send(whole)
            answers = 0
            while answers < len(parts):
                answers += _answered(sock.recv(65536))
    except OSError as e:
        raise HostError(
            f"nf_tables: {e.strerror or e}",
            hint="without it, a rule that masquerades what leaves a container's network hits the proxy too",
        ) from e


def _answered(raw: bytes) -> int:
    """How many messages were answered for. Raises OSError if one was refused."""
    count, at = 0, 0
    while at + _HEADER.size <= len(raw):
        length, kind, *_ = _HEADER.unpack_from(raw, at)
        if kind == _ERROR:
            number = struct.unpack_from("=i", raw, at + _HEADER.size)[0]
            if number:
                raise OSError(-number, os.strerror(-number))
            count += 1
        at += (length + 3) & ~3
    return count
