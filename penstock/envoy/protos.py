"""Small constructors for what every Envoy resource is made of.

Everything is packed deterministically: the same model must give the same bytes, because versions are
hashes of them.
"""

from __future__ import annotations

from envoy.config.core.v3 import (
    address_pb2,
    config_source_pb2,
    extension_pb2,
    socket_option_pb2,
)
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message

ADS = config_source_pb2.ConfigSource(ads={}, resource_api_version=config_source_pb2.ApiVersion.V3)


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
