"""Messages of Envoy 1.40 that xds-protos does not carry, declared with Envoy's own names and field numbers.

So they can travel in an Any. Each module declares what it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto


def field(name: str, number: int, type_name: str = "", *, repeated: bool = False) -> FieldDescriptorProto:
    """A field of the message type that is named in full, or a string."""
    kind = FieldDescriptorProto
    return FieldDescriptorProto(
        name=name,
        number=number,
        label=kind.LABEL_REPEATED if repeated else kind.LABEL_OPTIONAL,
        type=kind.TYPE_MESSAGE if type_name else kind.TYPE_STRING,
        type_name=f".{type_name}" if type_name else None,
    )


def declare(
    package: str, messages: Mapping[str, Iterable[FieldDescriptorProto]], *imports: FileDescriptor
) -> dict[str, Any]:
    """The classes of the `messages` of a package, by name; `imports` declare what their fields are."""
    file = FileDescriptorProto(
        name=f"penstock/{package}.proto",
        package=package,
        syntax="proto3",
        dependency=[each.name for each in imports],
    )
    for name, fields in messages.items():
        file.message_type.add(name=name, field=fields)
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in messages
    }
