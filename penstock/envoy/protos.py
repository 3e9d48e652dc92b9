"""Small constructors for what every Envoy resource is made of.

Everything is packed deterministically: the same model must give the same bytes, because versions are
hashes of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from envoy.config.core.v3 import (
    address_pb2,
    config_source_pb2,
    extension_pb2,
    socket_option_pb2,
)
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message

ADS = config_source_pb2.ConfigSource(ads={}, resource_api_version=config_source_pb2.ApiVersion.V3)


class Joined:
    """A message whose long list is serialised entry by entry, so that one entry more costs one entry.

    `entries` are those of the list, as fields (`delimited`); `head` has the fields before it and `tail` those
    after it: so the bytes are those that the message has as one. It is serialised like a message, and can be
    nothing else.
    """

    def __init__(self, head: Message, entries: Iterable[bytes], tail: Message) -> None:
        self.DESCRIPTOR = head.DESCRIPTOR
        self._head, self._tail = head, tail
        self._entries = tuple(entries)

    def SerializeToString(self, *, deterministic: bool = True) -> bytes:
        head, tail = (m.SerializeToString(deterministic=deterministic) for m in (self._head, self._tail))
        return b"".join((head, *self._entries, tail))

    def whole(self) -> Message:
        found: Message = type(self._head)()
        found.ParseFromString(self.SerializeToString())
        return found


class Written:
    """A message of type `kind` that was written as bytes, as protobuf would write it deterministically."""

    def __init__(self, kind: type[Message], body: bytes) -> None:
        self.DESCRIPTOR = kind.DESCRIPTOR
        self._kind, self._body = kind, body

    def SerializeToString(self, *, deterministic: bool = True) -> bytes:
        return self._body

    def whole(self) -> Message:
        found = self._kind()
        found.ParseFromString(self._body)
        return found


class Named:
    """A message like `pattern`, which has no name yet: its first field, `name`, is all that differs."""

    def __init__(self, name: str, pattern: Message, rest: bytes) -> None:
        """`rest` are the bytes of `pattern`, which are the same for all."""
        self.DESCRIPTOR = pattern.DESCRIPTOR
        self.name = name
        self._pattern, self._rest = pattern, rest

    def __getattr__(self, field: str) -> Any:
        return getattr(self._pattern, field)

    def SerializeToString(self, *, deterministic: bool = True) -> bytes:
        return delimited(1, self.name.encode()) + self._rest

    def whole(self) -> Message:
        found: Message = type(self._pattern)()
        found.ParseFromString(self.SerializeToString())
        return found


Made = Message | Joined | Written | Named
"""What a resource is made of: each can be serialised."""


def delimited(field: int, value: bytes) -> bytes:
    """A field of bytes, text or a message (protobuf.dev, "Encoding"); field numbers up to 15."""
    size = len(value)
    if size < 0x80:
        return bytes((field << 3 | 2, size)) + value
    return bytes((field << 3 | 2,)) + _varint(size) + value


def number(field: int, value: int) -> bytes:
    """A field that is an unsigned number."""
    return bytes((field << 3,)) + _varint(value)


@lru_cache(maxsize=4096)
def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message, deterministic=True)
    return packed


def extension(name: str, message: Message) -> extension_pb2.TypedExtensionConfig:
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=pack(message))


def seconds(value: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(value), nanos=round(value % 1 * 1e9))


def socket_address(address: str, port: int) -> address_pb2.Address:
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=address, port_value=port))


def socket_option(level: int, name: int, value: int, description: str) -> socket_option_pb2.SocketOption:
    """An integer option that is set before the socket is bound."""
    return socket_option_pb2.SocketOption(
        description=description,
        level=level,
        name=name,
        int_value=value,
        state=socket_option_pb2.SocketOption.SocketState.STATE_PREBIND,
    )
