"""Small constructors for what every Envoy resource is made of.

Everything is packed deterministically: the same model must give the same bytes, because versions are
hashes of them.
"""

from __future__ import annotations

from collections.abc import Mapping

from envoy.config.core.v3 import (
    address_pb2,
    base_pb2,
    config_source_pb2,
    extension_pb2,
    socket_option_pb2,
)
from google.protobuf import any_pb2, duration_pb2, struct_pb2
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


def metadata(namespaces: Mapping[str, Mapping[str, str]]) -> base_pb2.Metadata:
    """Filter metadata from plain dictionaries; what is empty is left out."""
    result = base_pb2.Metadata()
    for namespace, values in namespaces.items():
        if values:
            struct = struct_pb2.Struct()
            struct.update(dict(values))
            result.filter_metadata[namespace].CopyFrom(struct)
    return result
