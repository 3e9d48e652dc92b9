"""Messages of Envoy 1.40's on-demand certificates, which xds-protos does not carry.

Declared here with Envoy's names and field numbers, so that they can travel in an Any.
"""

from __future__ import annotations

from envoy.config.core.v3 import config_source_pb2, extension_pb2
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import Message

_TLS = "envoy.extensions.transport_sockets.tls"


def _declare(
    package: str, name: str, fields: list[FieldDescriptorProto], imports: tuple[str, ...] = ()
) -> type[Message]:
    file = FileDescriptorProto(
        name=f"penstock/{package}.proto", package=package, syntax="proto3", dependency=imports
    )
    file.message_type.add(name=name, field=fields)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    made: type[Message] = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
    return made


def _field(name: str, number: int, type_name: str = "") -> FieldDescriptorProto:
    field = FieldDescriptorProto(
        name=name,
        number=number,
        label=FieldDescriptorProto.LABEL_OPTIONAL,
        type=FieldDescriptorProto.TYPE_STRING,
    )
    if type_name:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = type_name
    return field


OnDemandSecret = _declare(
    f"{_TLS}.cert_selectors.on_demand_secret.v3",
    "Config",
    [
        _field("config_source", 1, ".envoy.config.core.v3.ConfigSource"),
        _field("certificate_mapper", 2, ".envoy.config.core.v3.TypedExtensionConfig"),
    ],
    (config_source_pb2.DESCRIPTOR.name, extension_pb2.DESCRIPTOR.name),
)
"""Asks SDS, during the handshake, for the secret that the mapper names."""

SniMapper = _declare(f"{_TLS}.cert_mappers.sni.v3", "SNI", [_field("default_value", 1)])
"""Names the secret by the SNI of the client."""

FilterStateMapper = _declare(
    f"{_TLS}.cert_mappers.filter_state_override.v3", "Config", [_field("default_value", 1)]
)
"""Names the secret by filter state under `names.CLIENT_SECRET_STATE`."""
