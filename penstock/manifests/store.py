"""The configuration folder as it is in force: the last good version of every object.

What is kept true:

- A bad document never takes its last good version away. It is found again by kind, namespace and name;
  where these cannot be read (a syntax error), all last good objects of that file stay.
- A file that is gone takes its objects with it.
- An object that stands in several files is the one of the first file by path; the others are problems.
- `generation` counts the changes of an object's content, `since` is the time of its file.

No I/O and no clock: the same changes in the same order give the same result.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from penstock.collection import uncollected
from penstock.manifests.document import Document, ObjectKey, place
from penstock.manifests.loader import load
from penstock.manifests.problem import Problem
from penstock.manifests.registry import SERVED


@dataclass(frozen=True, slots=True)
class ChangeResult:
    """What is in force after a change, everything that is wrong now, and whether the objects differ."""

    documents: Mapping[ObjectKey, Document]
    problems: tuple[Problem, ...]
    changed: bool


@dataclass(frozen=True, slots=True)
class _File:
    documents: tuple[Document, ...]
    problems: tuple[Problem, ...]


_NO_FILE = _File((), ())

_MOST_MOVED = 64
"""Objects that come and go and are put in their place one by one; beyond that all are sorted."""


def _with(
    known: Mapping[ObjectKey, Document],
    found: Mapping[ObjectKey, Document],
    came: Collection[ObjectKey],
    gone: Iterable[ObjectKey],
) -> dict[ObjectKey, Document]:
    """`known` with the documents of `found`, in order."""
    after = dict(known)
    for key in gone:
        del after[key]
    after.update(found)
    if not came:
        return after
    for key in came:
        del after[key]
    items = list(after.items())
    for key in sorted(came, key=place):
        at = bisect_left(items, place(key), key=_place_of)
        items.insert(at, (key, found[key]))
    return dict(items)


def _place_of(item: tuple[ObjectKey, Document]) -> tuple[str, str, str]:
    return place(item[0])


class Store:
    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._documents: dict[ObjectKey, Document] = {}
        self._loaded: dict[ObjectKey, Document] = {}
        """The documents in force as they were loaded, before their generation was counted."""
        self._distinct: tuple[Problem, ...] | None = None
        """All problems, if no object is given twice."""

    @uncollected
    def apply(
        self, changes: Mapping[str, str | None], since: Mapping[str, float] | None = None
    ) -> ChangeResult:
        """Takes the new text of the files that changed (None: gone), all as one change.

        `since` gives their modification times in seconds since the epoch.
        """
        gone = {file for file, text in changes.items() if text is None}
        moved = [
            document for file in sorted(gone & self._files.keys()) for document in self._files[file].documents
        ]
        before = {file: self._files.get(file) for file in changes}
        for file in gone:
            self._files.pop(file, None)
        for file, text in sorted(changes.items()):
            if text is not None:
                self._files[file] = self._read(file, text, (since or {}).get(file, 0.0), moved)
        return self._merge_in_place(before) or self._merge()

    def _merge_in_place(self, before: Mapping[str, _File | None]) -> ChangeResult | None:
        """What `_merge` gives where no object stands twice and these files are good; None if not so."""
        if self._distinct is None:
            return None
        pairs = [(old or _NO_FILE, self._files.get(file) or _NO_FILE) for file, old in before.items()]
        if any(old.problems or new.problems for old, new in pairs):
            return None
        gone = {document.key for old, _ in pairs for document in old.documents}
        found = {document.key: document for _, new in pairs for document in new.documents}
        if len(found) < sum(len(new.documents) for _, new in pairs):
            return None
        if any(key in self._documents and key not in gone for key in found):
            return None
        came, gone = [key for key in found if key not in gone], gone - found.keys()
        if len(came) + len(gone) > _MOST_MOVED:
            return None
        counted = {key: self._counted(document) for key, document in found.items()}
        changed = any(self._documents.get(key) is not document for key, document in counted.items())
        self._documents = _with(self._documents, counted, came, gone)
        self._loaded = (
            {k: v for k, v in self._loaded.items() if k not in gone} if gone else dict(self._loaded)
        )
        self._loaded.update(found)
        return ChangeResult(self._documents, self._distinct, changed or bool(gone))

    def _read(self, file: str, text: str, since: float, moved: Iterable[Document]) -> _File:
        loaded = load(text, file, since=since)
        here = self._files[file].documents if file in self._files else ()
        kept: dict[ObjectKey, Document] = {}
        for problem in loaded.problems:
            if problem.severity != "error":
                continue
            for document in (*here, *moved):
                if _concerns(problem, document, same_file=document in here):
                    kept.setdefault(document.key, document)
        for document in loaded.documents:
            kept.pop(document.key, None)
        return _File((*loaded.documents, *kept.values()), loaded.problems)

    def _merge(self) -> ChangeResult:
        loaded: dict[ObjectKey, Document] = {}
        problems: list[Problem] = []
        for file in sorted(self._files):
            problems += self._files[file].problems
            for document in self._files[file].documents:
                first = loaded.setdefault(document.key, document)
                if first is not document:
                    problems.append(_duplicate(document, first))
        documents = {key: self._counted(loaded[key]) for key in sorted(loaded, key=place)}
        before = self._documents
        changed = documents.keys() != before.keys() or any(documents[k] is not before[k] for k in documents)
        self._documents, self._loaded = documents, loaded
        doubled = any(problem.code == "duplicate" for problem in problems)
        self._distinct = None if doubled else tuple(problems)
        return ChangeResult(documents, tuple(problems), changed)

    def _counted(self, document: Document) -> Document:
        """The document with its generation; the very same one where nothing of it changed."""
        before = self._documents.get(document.key)
        if before is None:
            return document
        if self._loaded[document.key] is document:
            return before
        generation = before.generation + (before.value != document.value)
        after = replace(document, generation=generation)
        return before if after == before else after


def _concerns(problem: Problem, document: Document, *, same_file: bool) -> bool:
    """Whether the bad document of `problem` may be a new version of `document`."""
    if not problem.kind or not problem.name or problem.code == "object":
        return same_file
    key = document.key
    if problem.kind in SERVED:
        return key == ObjectKey(problem.kind, problem.namespace, problem.name)
    # A kind that is misspelt now was right when the object was good.
    return key.name == problem.name and key.namespace in ("", problem.namespace)


def _duplicate(document: Document, first: Document) -> Problem:
    key = document.key
    return Problem(
        document.file,
        document.line,
        f"is already given at {first.file}:{first.line}, which is in force",
        key.kind,
        key.namespace,
        key.name,
        hint="remove one of them",
        code="duplicate",
    )
