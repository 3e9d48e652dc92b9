"""What is wrong with the shape of a document: unknown fields, missing fields, wrong types, wrong enum values.

msgspec decides what is accepted; it is fast but stops at the first fault and cannot name an entry of a
mapping. This walk runs only where there is a fault to explain, reads the same types, and lists all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from penstock.manifests.base import Kind
from penstock.manifests.fields import NOT_YET, UNSUPPORTED_FIELDS, UNSUPPORTED_VALUES, WHY
from penstock.manifests.problem import Finding, Path, did_you_mean


def faults(value: Any, kind: type[Kind]) -> Iterator[Finding]:
    """Every fault in the shape of `value`, which should be a `kind`."""
    yield from _walk(value, _type_of(kind), (), None)


def drop_nulls(value: Any, nulls: tuple[Path, ...]) -> None:
    """Take out the fields that are null: to an API server a null field is an absent one."""
    for path in nulls:
        parent = value
        for part in path[:-1]:
            parent = parent[part]
        if isinstance(parent, dict):
            parent.pop(path[-1], None)


@cache
def _type_of(kind: type[Kind]) -> inspect.StructType:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    return info


_Owner = tuple[type[msgspec.Struct], str] | None


def _walk(value: Any, expected: inspect.Type, path: Path, owner: _Owner) -> Iterator[Finding]:
    match expected:
        case inspect.AnyType():
            return
        case inspect.UnionType():
            yield from _union(value, expected, path, owner)
        case inspect.StructType() if isinstance(value, dict):
            yield from _struct(value, expected, path)
        case inspect.ListType() if isinstance(value, list):
            for index, item in enumerate(value):
                yield from _walk(item, expected.item_type, (*path, index), owner)
        case inspect.DictType() if isinstance(value, dict):
            for key, item in value.items():
                yield from _walk(item, expected.value_type, (*path, key), owner)
        case inspect.LiteralType() if isinstance(value, str):
            if value not in expected.values:
                yield _not_in(value, expected, path, owner)
        case _ if not _is(value, expected):
            yield Finding(path, _wanted(value, expected), _quoting(value, expected), "type")


def _union(value: Any, expected: inspect.UnionType, path: Path, owner: _Owner) -> Iterator[Finding]:
    # The unions of kinds.py are "something or absent" and "integer or string", so one member is the real one.
    for member in expected.types:
        if _fits(value, member):
            yield from _walk(value, member, path, owner)
            return
    real = [m for m in expected.types if not isinstance(m, inspect.NoneType)]
    wanted = " or ".join(_name(m) for m in real)
    yield Finding(path, f"must be {wanted}, not {_show(value)}", _quoting(value, real[-1]), "type")


def _struct(value: dict[str, Any], expected: inspect.StructType, path: Path) -> Iterator[Finding]:
    known = {field.encode_name: field for field in expected.fields}
    for key, item in value.items():
        if key in known:
            yield from _walk(item, known[key].type, (*path, key), (expected.cls, key))
        elif expected.forbid_unknown_fields:
            refused = UNSUPPORTED_FIELDS.get(expected.cls, {})
            if key in refused:
                yield Finding((*path, key), refused[key], code="unserved")
            else:
                hint = did_you_mean(key, [*known, *refused])
                yield Finding((*path, key), "is not a field here", hint, "field")
    for name, field in known.items():
        if field.required and name not in value:
            yield Finding((*path, name), "is missing", code="value")


def _not_in(value: str, expected: inspect.LiteralType, path: Path, owner: _Owner) -> Finding:
    if owner and value in UNSUPPORTED_VALUES.get(owner, ()):
        why = f": {WHY[owner]}" if owner in WHY else ""
        return Finding(path, f'"{value}" {NOT_YET}{why}', _one_of(expected), "unserved")
    values = [str(v) for v in expected.values]
    hint = did_you_mean(value, values)
    return Finding(path, f"{_show(value)} is not one of {', '.join(values)}", hint, "value")


def _one_of(expected: inspect.LiteralType) -> str:
    return "it knows " + ", ".join(str(v) for v in expected.values)


def _fits(value: Any, expected: inspect.Type) -> bool:
    """Whether `value` is of the outer type, whatever is inside."""
    match expected:
        case inspect.StructType() | inspect.DictType():
            return isinstance(value, dict)
        case inspect.ListType():
            return isinstance(value, list)
        case inspect.LiteralType():
            return isinstance(value, str)
        case _:
            return _is(value, expected)


def _is(value: Any, expected: inspect.Type) -> bool:
    match expected:
        case inspect.NoneType():
            return value is None
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return isinstance(value, int) and not isinstance(value, bool)
        case inspect.StrType():
            return isinstance(value, str)
    return False


def _name(expected: inspect.Type) -> str:
    match expected:
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType():
            return "an integer"
        case inspect.StrType() | inspect.LiteralType():
            return "a string"
        case inspect.ListType():
            return "a list"
        case _:
            return "a mapping"


def _wanted(value: Any, expected: inspect.Type) -> str:
    return f"must be {_name(expected)}, not {_show(value)}"


def _show(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            return f'"{value}"' if len(value) <= 80 else f'"{value[:77]}…"'
        case list():
            return "a list"
    return "a mapping"


def _quoting(value: Any, expected: inspect.Type) -> str:
    """YAML guesses types; say how to make it guess right."""
    if isinstance(expected, inspect.StrType):
        if isinstance(value, bool):
            return "quote it (YAML reads yes, no, on, off, true and false as booleans)"
        if isinstance(value, int | float):
            return f'quote it: "{value}"'
        if value is None:
            return 'write "" for the empty string'
    if isinstance(expected, inspect.IntType) and isinstance(value, str) and value.isdecimal():
        return f"write {value} without quotes"
    if isinstance(expected, inspect.ListType) and value is not None:
        return 'start each item with "- "'
    return ""


def convert(value: Any, kind: type[Kind]) -> Kind | None:
    """`value` as a `kind`, or None where `faults` has something to say."""
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError:
        return None
