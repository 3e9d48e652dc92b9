"""What is wrong with a manifest, said so that its author can mend it.

A Finding is wrong somewhere in one document (a path); a Problem is a Finding with its place: file, line
and object. The text of a Problem is part of the outside contract:

    file:line: kind namespace/name: field: what is wrong; suggestion
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from penstock.manifests.document import ObjectKey

Path = tuple[str | int, ...]
"""Where in a document: ``("spec", "ingress", 0, "toPorts")``."""

Severity = Literal["error", "warning", "notice"]
"""error: the document is refused. warning: it is in force, perhaps not as meant. notice: passed over."""

Code = Literal[
    "syntax",  # not YAML or JSON, or larger or deeper than is read
    "object",  # not an object of an API: no kind, no apiVersion, no name
    "kind",  # unknown kind
    "apiVersion",
    "unserved",  # a kind or field that the API knows and this version does not enforce
    "field",  # unknown field
    "type",  # wrong type
    "value",  # right type, wrong value
    "duplicate",
    "reference",  # names or selects something that is not there
    "shadowed",  # a match that can never match (this and the next three: routing/review.py)
    "never",  # a path or method that no request has (routing/review_never.py)
    "weights",
    "grant",
    "endpoints",
    "unattached",  # a route that no listener takes (this and the next: routing/review_attach.py)
    "listener",
    "certificate",  # not for the host name that it is shown for (routing/review_edge.py)
    "expiry",  # a certificate that is no longer good, or soon (routing/review_expiry.py)
    "conflict",  # two policies for one target (this and the next: routing/review_traffic.py)
    "untouched",
    "mesh-tls",  # a BackendTLSPolicy beside an L7 rule on another node (explain/unreached.py)
    "rules-conflict",  # a rule that another one excludes (this and the next: explain/conflicts.py)
    "rules-clash",
    "server-names",
    "passed-over",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong at `path` of one document. `hint` is a suggestion, as a clause without a full stop."""

    path: Path
    message: str
    hint: str = ""
    code: Code = "value"
    severity: Severity = "error"


@dataclass(frozen=True, slots=True)
class Problem:
    """A finding with its place. What could not be read (kind, namespace, name) is ''."""

    file: str
    line: int
    message: str
    kind: str = ""
    namespace: str = ""
    name: str = ""
    field: str = ""
    hint: str = ""
    severity: Severity = "error"
    code: Code = "syntax"

    def __str__(self) -> str:
        parts = [f"{self.file}:{self.line}"]
        if self.kind:
            parts.append(str(ObjectKey(self.kind, self.namespace, self.name or "(no name)")))
        if self.field:
            parts.append(self.field)
        parts.append(self.message)
        return ": ".join(parts) + (f"; {self.hint}" if self.hint else "")


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def show_path(path: Path) -> str:
    """``spec.ingress[0].toPorts``; keys that are no identifiers are quoted: ``labels["a.b/c"]``."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif _PLAIN.fullmatch(part):
            shown += f".{part}" if shown else part
        else:
            shown += f'["{part}"]'
    return shown


def nearest(word: str, known: Iterable[str], cutoff: float = 0.7) -> str | None:
    """The known word that `word` was probably meant to be, if any."""
    by_lower = {k.lower(): k for k in sorted(known)}
    found = difflib.get_close_matches(word[:100].lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """The hint that names the nearest right word; '' if none is near."""
    near = nearest(word, known, cutoff)
    return f'did you mean "{near}"?' if near else ""
