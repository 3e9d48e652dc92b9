"""One document of the configuration folder, typed, with where it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from penstock.manifests.base import ObjectMeta
from penstock.manifests.kinds import AnyKind


class ObjectKey(NamedTuple):
    """What names an object: its kind, namespace and name. Cluster-wide kinds have namespace ''."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def place(key: ObjectKey) -> tuple[str, str, str]:
    """What keys are sorted by; many times faster than asking each pair which is less."""
    return key.kind, key.namespace, key.name


@dataclass(frozen=True, slots=True)
class Origin:
    """A place that an operator can open: a file, a line in it (from 1), and which rule it is."""

    file: str
    line: int
    rule: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" + (f" {self.rule}" if self.rule else "")


@dataclass(frozen=True, slots=True)
class Document:
    """A manifest that was read and found good.

    `lines` maps the path of every mapping, list item and field (``("spec", "ingress", 0)``) to its line.
    `generation` counts the changes of the object's content; `since` is the file's modification time in
    seconds since the epoch (the age by which ties between routes are broken).
    """

    key: ObjectKey
    value: AnyKind
    file: str
    line: int
    lines: Mapping[tuple[str | int, ...], int] = field(default_factory=dict, repr=False)
    generation: int = 1
    since: float = 0.0

    @property
    def metadata(self) -> ObjectMeta:
        return self.value.metadata

    def origin(self, *path: str | int) -> Origin:
        """The line of `path`, or of its nearest known parent."""
        rule = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path).lstrip(".")
        for end in range(len(path), 0, -1):
            line = self.lines.get(path[:end])
            if line is not None:
                return Origin(self.file, line, rule)
        return Origin(self.file, self.line, rule)
