"""Tables that know in what they differ from the one that they were made from.

Whoever follows a long table looks at what has changed and not at all of it. Of tables that are not neighbours
no difference is believed: they are compared.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import compress, count, islice
from operator import is_not
from typing import Any, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Table(dict[K, V]):
    """`changed` are the keys that came, went or have another value since the table whose token is `base`."""

    __slots__ = ("base", "changed", "token")

    def __init__(self, content: Mapping[K, V] | None = None, changed: Collection[K] = ()) -> None:
        super().__init__(content or {})
        self.token = object()
        self.base = content.token if isinstance(content, Table) else None
        self.changed: Collection[K] = changed

    def after(self, changes: Mapping[K, V | None]) -> Table[K, V]:
        """A copy with other values; None is no entry. The changes alone cost anything but a copy."""
        found = Table(self, tuple(changes))
        for key, value in changes.items():
            if value is None:
                found.pop(key, None)
            else:
                found[key] = value
        return found


def replaced(old: Mapping[K, V], new: Mapping[K, V]) -> list[K]:
    """The keys that came, went, or have another object as their value (equal or not).

    What stands at both ends in the same order is passed over quickly: of long tables with few changes hardly
    any key is looked up.
    """
    if old is new:
        return []
    fewer = min(len(old), len(new))
    first = _alike((old, new), (old.values(), new.values()), fewer)
    keys, values = [*map(list, (old, new))], [list(each.values()) for each in (old, new)]
    last = _alike([*map(reversed, keys)], [*map(reversed, values)], fewer)
    last = min(last, fewer - first)
    found = [k for k, v in islice(new.items(), first, len(new) - last) if old.get(k) is not v]
    found += [k for k in islice(old, first, len(old) - last) if k not in new]
    return found


def _alike(keys: Collection[Iterable[Any]], values: Collection[Iterable[Any]], most: int) -> int:
    """How many entries from the start have the very same key and value."""
    return min(_same(values, most), _same(keys, most))


def _same(both: Collection[Iterable[Any]], most: int) -> int:
    """How many from the start are the very same in both."""
    return next(compress(count(), map(is_not, *both)), most)


def apart(old: Sequence[V], new: Sequence[V]) -> tuple[Sequence[V], Sequence[V]]:
    """Both without what is the very same at their starts and at their ends."""
    fewer = min(len(old), len(new))
    first = _same((old, new), fewer)
    last = min(_same((reversed(old), reversed(new)), fewer), fewer - first)
    return old[first : len(old) - last], new[first : len(new) - last]


_FEW = 64
"""Entries that are put in their place one by one; beyond that all are sorted."""


def placed(table: Mapping[K, V], late: int, order: Callable[[K], Any]) -> dict[K, V]:
    """`table` in order, of which all but the last `late` entries are in order."""
    items = list(table.items())
    if late > _FEW:
        return dict(sorted(items, key=lambda item: order(item[0])))
    end = len(items) - late
    items, came = items[:end], items[end:]
    for item in came:
        items.insert(bisect_left(items, order(item[0]), key=lambda each: order(each[0])), item)
    return dict(items)


def differing(old: Mapping[K, V], new: Mapping[K, V]) -> Collection[K]:
    """The keys whose entries may differ: all that do, and hardly any other."""
    if old is new:
        return ()
    if isinstance(old, Table) and isinstance(new, Table) and new.base is old.token:
        return new.changed
    found = [key for key, value in new.items() if old.get(key) != value]
    return [*found, *(key for key in old if key not in new)]
