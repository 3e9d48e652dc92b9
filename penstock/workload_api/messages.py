"""The messages of the SPIFFE Workload API (SPIFFE_Workload_API.md §5 and §6), declared here by hand.

They stand in a descriptor pool of their own: a client library in the same process may declare the same names.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

SERVICE = "SpiffeWorkloadAPI"

_Field = descriptor_pb2.FieldDescriptorProto
_Shape = tuple[tuple[str, int, str], ...]
"""Fields: name, number, type; ``*`` before a type is repeated, ``map`` is string → bytes, ``any`` a
Struct."""

_MESSAGES: dict[str, _Shape] = {
    "X509SVIDRequest": (),
    "X509SVIDResponse": (
        ("svids", 1, "*X509SVID"),
        ("crl", 2, "*bytes"),
        ("federated_bundles", 3, "map"),
    ),
    "X509SVID": (
        ("spiffe_id", 1, "string"),
        ("x509_svid", 2, "bytes"),
        ("x509_svid_key", 3, "bytes"),
        ("bundle", 4, "bytes"),
        ("hint", 5, "string"),
    ),
    "X509BundlesRequest": (),
    "X509BundlesResponse": (("crl", 1, "*bytes"), ("bundles", 2, "map")),
    "JWTSVIDRequest": (("audience", 1, "*string"), ("spiffe_id", 2, "string")),
    "JWTSVIDResponse": (("svids", 1, "*JWTSVID"),),
    "JWTSVID": (("spiffe_id", 1, "string"), ("svid", 2, "string"), ("hint", 3, "string")),
    "JWTBundlesRequest": (),
    "JWTBundlesResponse": (("bundles", 1, "map"),),
    "ValidateJWTSVIDRequest": (("audience", 1, "string"), ("svid", 2, "string")),
    "ValidateJWTSVIDResponse": (("spiffe_id", 1, "string"), ("claims", 2, "any")),
}
_SCALARS = {"string": _Field.TYPE_STRING, "bytes": _Field.TYPE_BYTES}


def _fill(message: descriptor_pb2.DescriptorProto, fields: _Shape) -> None:
    for name, number, told in fields:
        field = message.field.add(name=name, number=number)
        repeated = told == "map" or told.startswith("*")
        field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
        kind = told.removeprefix("*")
        if kind in _SCALARS:
            field.type = _SCALARS[kind]
            continue
        field.type = _Field.TYPE_MESSAGE
        if kind == "any":
            field.type_name = f".{struct_pb2.Struct.DESCRIPTOR.full_name}"
            continue
        if kind != "map":
            field.type_name = f".{kind}"
            continue
        entry = message.nested_type.add(name="".join(part.title() for part in name.split("_")) + "Entry")
        entry.options.map_entry = True
        for key, position, scalar in (("key", 1, "string"), ("value", 2, "bytes")):
            entry.field.add(name=key, number=position, type=_SCALARS[scalar], label=_Field.LABEL_OPTIONAL)
        field.type_name = f".{message.name}.{entry.name}"


def _declare() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="penstock/workload_api.proto", syntax="proto3")
    for name, fields in _MESSAGES.items():
        _fill(file.message_type.add(name=name), fields)
    file.dependency.append(struct_pb2.DESCRIPTOR.name)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in _MESSAGES}


_classes = _declare()
X509SVIDRequest = _classes["X509SVIDRequest"]
X509SVIDResponse = _classes["X509SVIDResponse"]
X509SVID = _classes["X509SVID"]
X509BundlesRequest = _classes["X509BundlesRequest"]
X509BundlesResponse = _classes["X509BundlesResponse"]
JWTSVIDRequest = _classes["JWTSVIDRequest"]
JWTSVIDResponse = _classes["JWTSVIDResponse"]
JWTSVID = _classes["JWTSVID"]
JWTBundlesRequest = _classes["JWTBundlesRequest"]
JWTBundlesResponse = _classes["JWTBundlesResponse"]
ValidateJWTSVIDRequest = _classes["ValidateJWTSVIDRequest"]
ValidateJWTSVIDResponse = _classes["ValidateJWTSVIDResponse"]
