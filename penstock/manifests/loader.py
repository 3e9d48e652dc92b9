"""Text of one file to documents and problems.

Nothing in the text raises: what cannot be read is a Problem, everything else is loaded all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

from penstock.manifests import shape
from penstock.manifests.checks import check
from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.endpoints_mirror import mirrored
from penstock.manifests.kinds import AnyKind
from penstock.manifests.problem import Finding, Path, Problem, did_you_mean, nearest, show_path
from penstock.manifests.registry import API_VERSIONS, PASSED_OVER, SERVED, ServedKind
from penstock.manifests.tree import Broken, RawDocument, parse

_NAMED_MAPS = ("labels", "annotations", "matchLabels", "selector")
"""Mappings whose keys are the user's: an entry without a value is a mistake, not an absent field."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]


def load(text: str, file: str, *, since: float = 0.0) -> LoadResult:
    """The good documents of `text` and everything that is wrong with the rest, in the order of the file.

    `file` is the name that problems and origins show, `since` its modification time.
    """
    documents: list[Document] = []
    problems: list[Problem] = []
    for raw in parse(text):
        if isinstance(raw, Broken):
            problems.append(Problem(file, raw.line, raw.message, hint=raw.hint))
            continue
        for item in _expand(raw):
            reader = _Reader(item, file, since)
            document = reader.read()
            problems += sorted(reader.problems, key=lambda problem: problem.line)
            if document is not None:
                documents.append(document)
                documents += mirrored(document)
    return LoadResult(tuple(documents), tuple(problems))


def load_object(value: dict[str, Any], file: str, *, since: float = 0.0) -> LoadResult:
    """The document that `value` says, as if it stood in a file `file`: it obeys the same rules."""
    reader = _Reader(RawDocument(value, 1), file, since)
    document = reader.read()
    read = (document, *mirrored(document)) if document is not None else ()
    return LoadResult(read, tuple(reader.problems))


def _expand(raw: RawDocument) -> Iterator[RawDocument]:
    """The items of a List, as if each stood alone."""
    value = raw.value
    is_list = isinstance(value, dict) and value.get("kind") == "List" and value.get("apiVersion") == "v1"
    if not is_list or not isinstance(value.get("items"), list):
        yield raw
        return
    items = value["items"]
    lines: list[dict[Path, int]] = [{} for _ in items]
    nulls: list[list[Path]] = [[] for _ in items]
    written: list[set[Path]] = [set() for _ in items]
    findings: list[list[Finding]] = [[] for _ in items]

    def index(path: Path) -> int | None:
        in_items = len(path) > 1 and path[0] == "items" and isinstance(path[1], int)
        return cast(int, path[1]) if in_items else None

    for path, line in raw.lines.items():
        if (i := index(path)) is not None:
            lines[i][path[2:]] = line
    for path in raw.nulls:
        if (i := index(path)) is not None:
            nulls[i].append(path[2:])
            if path in raw.written:
                written[i].add(path[2:])
    outside = []
    for finding in raw.findings:
        i = index(finding.path)
        if i is None:
            outside.append(finding)
        else:
            findings[i].append(replace(finding, path=finding.path[2:]))
    if outside:
        yield RawDocument({"kind": "List"}, raw.line, raw.lines, tuple(outside))
    for i, item in enumerate(items):
        here = lines[i].get((), raw.line)
        wanted = tuple(path for path in nulls[i] if path)
        yield RawDocument(item, here, lines[i], tuple(findings[i]), wanted, frozenset(written[i]))


class _Reader:
    """Reads one document: first what it is, then its shape, then its rules."""

    def __init__(self, raw: RawDocument, file: str, since: float) -> None:
        self.problems: list[Problem] = []
        self._raw = raw
        self._file = file
        self._since = since
        value = raw.value if isinstance(raw.value, dict) else {}
        metadata = value.get("metadata")
        metadata = metadata if isinstance(metadata, dict) else {}
        self._kind = _text(value.get("kind"))
        self._name = _text(metadata.get("name"))
        namespace = _text(metadata.get("namespace"))
        served = SERVED.get(self._kind)
        if served is not None and not served.namespaced:
            self._namespace = ""
        elif self._kind in PASSED_OVER:
            self._namespace = namespace
        else:
            self._namespace = namespace or "default"

    def read(self) -> Document | None:
        raw = self._raw
        for finding in raw.findings:
            self._report(finding)
        if not isinstance(raw.value, dict):
            self._report(Finding((), "is not an object: it has no apiVersion and kind", code="object"))
            return None
        served = self._identify(raw.value)
        if served is None:
            return None
        value = self._shaped(raw.value, served)
        if value is None:
            return None
        for finding in check(value):
            self._report(finding)
        if any(problem.severity == "error" for problem in self.problems):
            return None
        key = ObjectKey(self._kind, self._namespace, self._name)
        return Document(key, value, self._file, raw.line, raw.lines, since=self._since)

    def _identify(self, value: dict[str, Any]) -> ServedKind | None:
        """The kind to read the document as, if it is one that is read."""
        if value.get("kind") == "List" and self.problems:
            return None
        for field in ("apiVersion", "kind"):
            word = value.get(field)
            if not isinstance(word, str) or not word:
                near = nearest(field, (k for k in value if k not in ("apiVersion", "kind")), 0.8)
                missing = "must be a string" if word else "is missing"
                self._report(Finding((field,), missing, f'is "{near}" meant?' if near else "", "object"))
                return None
        kind, version = self._kind, _text(value["apiVersion"])
        if kind not in API_VERSIONS:
            hint = did_you_mean(kind, API_VERSIONS, 0.6)
            self._report(Finding(("kind",), f'"{kind}" of {version} is not known', hint, "kind"))
            return None
        if version not in API_VERSIONS[kind]:
            message = f'"{version}" is not the apiVersion of {kind}'
            self._report(Finding(("apiVersion",), message, f"write {API_VERSIONS[kind][0]}", "apiVersion"))
            return None
        if kind in PASSED_OVER:
            message = "passed over: Penstock has no use for this kind"
            self._report(Finding((), message, code="passed-over", severity="notice"))
            return None
        return SERVED[kind]

    def _shaped(self, value: dict[str, Any], served: ServedKind) -> AnyKind | None:
        metadata = value.get("metadata")
        if not served.namespaced and isinstance(metadata, dict) and metadata.get("namespace"):
            self._report(
                Finding(("metadata", "namespace"), f"a {served.name} has no namespace", "leave it out")
            )
        absent = []
        for path in self._raw.nulls:
            if path[-2:-1] and path[-2] in _NAMED_MAPS:
                continue
            # What is written as null an API server prunes; an empty value is a line that was not finished.
            if served.custom and path[0] == "spec" and path not in self._raw.written:
                message = "has no value"
                self._report(Finding(path, message, "leave it out, or write what it holds", "type"))
            absent.append(path)
        is_whole = not self.problems
        shape.drop_nulls(value, tuple(absent))
        converted = shape.convert(value, served.type)
        if converted is None:
            before = len(self.problems)
            for finding in shape.faults(value, served.type):
                self._report(finding)
            if len(self.problems) == before:
                self._report(Finding((), f"is not a {served.name}", code="type"))
            return None
        return cast(AnyKind, converted) if is_whole else None

    def _report(self, finding: Finding) -> None:
        self.problems.append(
            Problem(
                file=self._file,
                line=self._line(finding.path),
                message=finding.message,
                kind=self._kind,
                namespace=self._namespace,
                name=self._name,
                field=show_path(finding.path),
                hint=finding.hint,
                severity=finding.severity,
                code=finding.code,
            )
        )

    def _line(self, path: Path) -> int:
        for end in range(len(path), 0, -1):
            if (line := self._raw.lines.get(path[:end])) is not None:
                return line
        return self._raw.line


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
