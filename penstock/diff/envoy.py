"""The resources that two proxy models become, and what differs in each. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from penstock.envoy.resources import build
from penstock.routing.model import ProxyModel
from penstock.world import Settings


def envoy_changes(before: ProxyModel, after: ProxyModel, settings: Settings) -> list[dict[str, Any]]:
    """Each resource that would come, go or change, with the fields that differ in one that changes."""
    first, second = build(before, settings), build(after, settings)
    found: list[dict[str, Any]] = []
    for kind in sorted(first.keys() | second.keys()):
        old, new = first.get(kind, {}), second.get(kind, {})
        for name in sorted(old.keys() | new.keys()):
            was, is_ = old.get(name), new.get(name)
            if was == is_:
                continue
            change = "added" if was is None else "removed" if is_ is None else "changed"
            fields = list(_fields(_plain(was), _plain(is_))) if was is not None and is_ is not None else []
            found.append({"change": change, "type": kind.rpartition(".")[2], "name": name, "fields": fields})
    return found


def _plain(message: Message) -> Any:
    return MessageToDict(message, preserving_proto_field_name=True)


def _fields(before: Any, after: Any, path: str = "") -> Iterator[dict[str, Any]]:
    """The leaves that differ. In lists, what stands at the same place is compared."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            yield from _fields(before.get(key), after.get(key), f"{path}.{key}" if path else key)
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            was, is_ = (items[index] if index < len(items) else None for items in (before, after))
            yield from _fields(was, is_, f"{path}[{index}]")
    elif before != after:
        yield {"field": path, "before": before, "after": after}
