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

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

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


class Store:
    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self._documents: dict[ObjectKey, Document] = {}
        self._loaded: dict[ObjectKey, Document] = {}
        """The documents in force as they were loaded, before their generation was counted."""
        self._distinct: tuple[Problem, ...] | None = None
        """All problems, if no object is given twice."""

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
        """What `_merge` gives where these files hold the same objects as before; None if they do not."""
        if self._distinct is None:
            return None
        loaded, documents, problems = dict(self._loaded), dict(self._documents), self._distinct
        changed = False
        for file, old in before.items():
            new = self._files.get(file)
            if old is None or new is None or old.problems or new.problems:
                return None
            keys = [document.key for document in new.documents]
            if {document.key for document in old.documents} != set(keys) or len(set(keys)) < len(keys):
                return None
            for document in new.documents:
                documents[document.key] = counted = self._counted(document)
                changed = changed or counted is not self._documents[document.key]
                loaded[document.key] = document
        self._documents, self._loaded = documents, loaded
        return ChangeResult(documents, problems, changed)

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
