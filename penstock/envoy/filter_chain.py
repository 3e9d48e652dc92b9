"""Messages of Envoy 1.40's filter_chain filter, which xds-protos does not carry: filters inside a filter.

Declared here with Envoy's names and field numbers, so that they can travel in an Any.
"""

from __future__ import annotations

from typing import Any

from envoy.config.core.v3 import extension_pb2
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto

_PACKAGE = "envoy.extensions.filters.http.filter_chain.v3"


def _declare() -> FileDescriptorProto:
    file = FileDescriptorProto(
        name=f"penstock/{_PACKAGE}.proto",
        package=_PACKAGE,
        syntax="proto3",
        dependency=[extension_pb2.DESCRIPTOR.name],
    )
    for name, field, type_name, label in (
        (
            "FilterChain",
            "filters",
            ".envoy.config.core.v3.TypedExtensionConfig",
            FieldDescriptorProto.LABEL_REPEATED,
        ),
        (
            "FilterChainConfig",
            "default_filter_chain",
            f".{_PACKAGE}.FilterChain",
            FieldDescriptorProto.LABEL_OPTIONAL,
        ),
        (
            "FilterChainConfigPerRoute",
            "filter_chain",
            f".{_PACKAGE}.FilterChain",
            FieldDescriptorProto.LABEL_OPTIONAL,
        ),
    ):
        file.message_type.add(name=name).field.add(
            name=field,
            number=1,
            label=label,
            type=FieldDescriptorProto.TYPE_MESSAGE,
            type_name=type_name,
        )
    return file


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(_declare().SerializeToString())

FilterChainConfig = _message("FilterChainConfig")
"""What holds where no route says otherwise."""

FilterChainPerRoute = _message("FilterChainConfigPerRoute")
"""What holds for a route, or for a table of them."""
