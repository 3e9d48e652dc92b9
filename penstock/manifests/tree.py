"""Text to plain values, with the line of every field.

YAML and JSON are read with the C parser's events, not with its node composer: the composer recurses
in C and a file of a few thousand brackets ends the process. Working from events also keeps anchors
harmless: an alias is a copy, copies are counted, and a node cannot contain itself.

What is kept true: nothing that is in the text raises; a document that cannot be read is one finding
and the next document is read all the same (`---` at the start of a line always begins a document).

Scalars follow YAML 1.1 as Kubernetes reads it (`on` and `yes` are booleans), without its
base-60 numbers and timestamps, which Kubernetes reads as strings too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from penstock.manifests.problem import Finding, Path

MAX_TEXT = 16 * 1024 * 1024
"""Characters of one file. Kubernetes takes objects of 1.5 MiB; this is a file of many."""
MAX_DEPTH = 64
"""Levels of nesting. The deepest served field stands at level 11."""
MAX_COPIES = 20_000
"""Values that the aliases of one document may make (ten lines of them could make billions)."""
_MAX_BROKEN = 20
"""Unreadable documents of one file that are reported; the rest of the file is not read then."""


@dataclass(frozen=True, slots=True)
class RawDocument:
    """One document as plain values. `nulls` are the paths of values that are absent or null; of these
    `written` are those where somebody wrote ``null`` or ``~``."""

    value: Any
    line: int
    lines: dict[Path, int] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    nulls: tuple[Path, ...] = ()
    written: frozenset[Path] = frozenset()


@dataclass(frozen=True, slots=True)
class Broken:
    """A piece of text that is no document."""

    line: int
    message: str
    hint: str = ""


class _Unreadable(Exception):
    def __init__(self, line: int, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.broken = Broken(line, message, hint)


_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_DOCUMENT_START = re.compile("(?:^|(?<=[\n\r\x85\u2028\u2029]))---(?=[ \t\n\r]|$)")
_SURROGATE_PAIR = re.compile(
    r"(?<!\\)((?:\\\\)*)\\u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})"
)


def parse(text: str) -> Iterator[RawDocument | Broken]:
    """Every document of `text` in order. Empty documents are left out."""
    if len(text) > MAX_TEXT:
        yield Broken(1, f"is larger than {MAX_TEXT >> 20} MiB", "split it into several files")
        return
    if found := _UNPRINTABLE.search(text):
        line = len(_LINE_BREAK.findall(text, 0, found.start())) + 1
        if "\ud800" <= found[0] <= "\udfff":
            yield Broken(line, "is not UTF-8 text", "save the file as UTF-8")
        else:
            yield Broken(line, f"holds the control character U+{ord(found[0]):04X}")
        return
    if text.lstrip().startswith(("{", "[")):
        text = _SURROGATE_PAIR.sub(_join_surrogates, text)
    start, first_line, broken = 0, 1, 0
    while start < len(text):
        try:
            yield from _documents(text[start:], first_line)
            return
        except _Unreadable as e:
            yield e.broken
            problem_line = e.broken.line
        broken += 1
        if broken == _MAX_BROKEN:
            yield Broken(problem_line, "too many unreadable documents, the rest of this file is not read")
            return
        # The parser may have looked ahead: go on at the first document that starts at or after the fault.
        line, previous = first_line, start
        for mark in _DOCUMENT_START.finditer(text, start + 1):
            line += len(_LINE_BREAK.findall(text, previous, mark.start()))
            previous = mark.start()
            if line >= problem_line:
                start, first_line = mark.start(), line
                break
        else:
            return


def _join_surrogates(found: re.Match[str]) -> str:
    """JSON writes characters beyond U+FFFF as two escapes, which YAML does not know."""
    high, low = int(found[2], 16), int(found[3], 16)
    return found[1] + chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


def _documents(text: str, first_line: int) -> Iterator[RawDocument]:
    events = yaml.parse(text, Loader=yaml.CSafeLoader)
    offset = first_line
    try:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                document = _Builder(events, offset).document()
                if document.value is not None or document.findings:
                    yield document
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        if e.context_mark and "document indicator" in (e.problem or ""):
            mark = e.context_mark
        line = (mark.line if mark else 0) + offset
        raise _Unreadable(line, *_explain(e, text, mark.line if mark else 0)) from None
    except yaml.YAMLError as e:
        raise _Unreadable(offset, f"is not YAML: {e}") from None


def _explain(error: yaml.MarkedYAMLError, text: str, line: int) -> tuple[str, str]:
    message = error.problem or "is not YAML"
    if error.context:
        message += f" {error.context}"
    lines = _LINE_BREAK.split(text)
    here = lines[line] if line < len(lines) else ""
    if here[: len(here) - len(here.lstrip())].count("\t") or "tab character" in message:
        return "found a tab in the indentation", "indent with spaces"
    if "mapping values are not allowed" in message:
        return message, 'check the indentation, and quote values that contain ": "'
    if here.startswith("---") or "document indicator" in message:
        return message, "a quote or a bracket above is not closed"
    return message, ""


_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_OCTAL = re.compile(r"[-+]?0o?[0-7]+")
_HEX = re.compile(r"[-+]?0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_WORDS: dict[str, Any] = {"": None, "~": None}
for _value, _words in ((None, "null"), (True, "true yes on"), (False, "false no off")):
    for _word in _words.split():
        _WORDS |= {_word: _value, _word.title(): _value, _word.upper(): _value}
for _sign, _factor in (("", 1.0), ("+", 1.0), ("-", -1.0)):
    _WORDS |= {f"{_sign}{_w}": _factor * float("inf") for _w in (".inf", ".Inf", ".INF")}
_WORDS |= {_w: float("nan") for _w in (".nan", ".NaN", ".NAN")}
_TAG = "tag:yaml.org,2002:"


def _plain(value: str) -> Any:
    """The value of an unquoted scalar."""
    if value in _WORDS:
        return _WORDS[value]
    if value[0] not in "+-.0123456789" or len(value) > 40:
        return value
    if _INT.fullmatch(value):
        return int(value)
    if _OCTAL.fullmatch(value):
        return int(value.replace("o", ""), 8)
    if _HEX.fullmatch(value):
        return int(value, 16)
    if _FLOAT.fullmatch(value):
        return float(value)
    return value


class _Builder:
    """Builds one document from the events that follow its start."""

    def __init__(self, events: Iterator[Any], offset: int) -> None:
        self._events = events
        self._offset = offset
        self._lines: dict[Path, int] = {}
        self._anchors: dict[str, tuple[Any, Path]] = {}
        self._findings: list[Finding] = []
        self._nulls: list[Path] = []
        self._written: set[Path] = set()
        self._budget = MAX_COPIES

    def document(self) -> RawDocument:
        event = next(self._events)
        line = self._line(event)
        value = self._value(event, ())
        nulls = tuple(path for path in self._nulls if path)
        written = frozenset(self._written)
        return RawDocument(value, line, self._lines, tuple(self._findings), nulls, written)

    def _value(self, event: Any, path: Path) -> Any:
        if len(path) > MAX_DEPTH:
            raise _Unreadable(self._line(event), f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, path)
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = self._scalar(event, path)
            if value is None:
                self._nulls.append(path)
                if event.value:
                    self._written.add(path)
        elif isinstance(event, yaml.MappingStartEvent):
            self._tagged(event, path, "map")
            value = self._mapping(path)
        else:
            self._tagged(event, path, "seq")
            value = self._sequence(path)
        if event.anchor is not None:
            self._anchors[event.anchor] = (value, path)
        return value

    def _line(self, event: Any) -> int:
        line: int = event.start_mark.line + self._offset
        return line

    def _sequence(self, path: Path) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            here = (*path, len(found))
            self._lines[here] = self._line(event)
            found.append(self._value(event, here))
        return found

    def _mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[tuple[Any, Path]] = []
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = self._line(event)
            if not isinstance(event, yaml.ScalarEvent):
                self._findings.append(Finding(path, f"line {line}: a key must be a string", code="syntax"))
                self._value(event, (*path, "?"))
                self._value(next(self._events), (*path, "?"))
                continue
            key = event.value
            if key == "<<" and event.implicit[0]:
                source = next(self._events)
                here = (*path, "<<")
                if isinstance(source, yaml.AliasEvent) and source.anchor in self._anchors:
                    merged.append(self._anchors[source.anchor])
                else:
                    merged.append((self._value(source, here), here))
                continue
            here = (*path, key)
            if key in found:
                message = f"is given twice, first on line {self._lines[here]}"
                self._findings.append(Finding(here, message, code="duplicate"))
                self._lines[here] = line
                self._value(next(self._events), here)
                continue
            self._lines[here] = line
            found[key] = None
            found[key] = self._value(next(self._events), here)
        for value, source_path in merged:
            self._merge(found, value, source_path, path)
        return found

    def _merge(self, found: dict[str, Any], value: Any, source: Path, path: Path) -> None:
        sources = (
            [(v, (*source, i)) for i, v in enumerate(value)] if isinstance(value, list) else [(value, source)]
        )
        for mapping, where in sources:
            if not isinstance(mapping, dict):
                self._findings.append(Finding(path, '"<<" merges mappings only', code="syntax"))
                continue
            for key, item in mapping.items():
                if key not in found:
                    found[key] = self._copy(item, (*where, key), (*path, key))

    def _alias(self, event: Any, path: Path) -> Any:
        known = self._anchors.get(event.anchor)
        if known is None:
            raise _Unreadable(self._line(event), f"the alias *{event.anchor} has no anchor before it")
        line = self._lines.get(path)
        value = self._copy(known[0], known[1], path)
        if line is not None:
            self._lines[path] = line
        return value

    def _copy(self, value: Any, source: Path, path: Path) -> Any:
        self._budget -= 1
        line = self._lines.get(source)
        if self._budget < 0 or len(path) > MAX_DEPTH:
            raise _Unreadable(line or self._offset, "the aliases make the document too large")
        if line is not None:
            self._lines[path] = line
        if isinstance(value, dict):
            return {k: self._copy(v, (*source, k), (*path, k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self._copy(v, (*source, i), (*path, i)) for i, v in enumerate(value)]
        if value is None:
            self._nulls.append(path)
        return value

    def _tagged(self, event: Any, path: Path, native: str) -> None:
        if event.tag not in (None, "!", _TAG + native):
            self._findings.append(Finding(path, f"the tag {event.tag} is not understood", code="syntax"))

    def _scalar(self, event: Any, path: Path) -> Any:
        value: str = event.value
        if event.tag is None:
            return _plain(value) if event.implicit[0] else value
        if event.tag in ("!", _TAG + "str"):
            return value
        if event.tag in (_TAG + "int", _TAG + "float", _TAG + "bool", _TAG + "null"):
            return _plain(value)
        self._findings.append(Finding(path, f"the tag {event.tag} is not understood", code="syntax"))
        return value
