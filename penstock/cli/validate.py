"""`penstock validate`: what the daemon would say about manifests, without a daemon, a kernel or an Envoy."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from penstock.errors import InputError, PenstockError
from penstock.explain.findings import findings
from penstock.manifests.problem import Problem
from penstock.manifests.store import Store
from penstock.sources.reading import Absent, find, read

STDIN = "(stdin)"


@click.command()
@click.option(
    "-f",
    "--file",
    "paths",
    multiple=True,
    required=True,
    metavar="PATH",
    help="A file, or a directory that is read recursively; - is standard input. May be given several times.",
)
@click.argument("more", nargs=-1, metavar="[PATH]...")
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def validate(paths: tuple[str, ...], more: tuple[str, ...], output: str) -> None:
    """Check manifests: exit code 0 if nothing is refused, 2 if something is."""
    try:
        texts = read_all([*paths, *more])
    except PenstockError as e:
        click.echo(f"penstock: {e}" + (f"; {e.hint}" if e.hint else ""), err=True)
        sys.exit(e.exit_code)
    result = Store().apply(texts, since(texts))
    documents = result.documents.values()
    problems = sorted(
        [*result.problems, *findings(documents, datetime.now(UTC))],
        key=lambda problem: (problem.file, problem.line),
    )
    counts = Counter(problem.severity for problem in problems)
    if output == "json":
        shown: dict[str, Any] = {
            "ok": not counts["error"],
            "files": len(texts),
            "objects": len(result.documents),
            "problems": [msgspec.to_builtins(problem) for problem in problems],
        }
        click.echo(msgspec.json.format(msgspec.json.encode(shown), indent=2).decode())
    else:
        for problem in problems:
            click.echo(describe(problem))
        click.echo(
            f"{len(texts)} files, {len(result.documents)} objects in order, {counts['error']} errors, "
            f"{counts['warning']} warnings, {counts['notice']} notices",
            err=True,
        )
    sys.exit(2 if counts["error"] else 0)


def since(texts: Mapping[str, str]) -> dict[str, float]:
    """When each file was written, which decides ties between routes."""
    found = {}
    for file in texts:
        with suppress(OSError):
            found[file] = os.stat(file).st_mtime
    return found


def describe(problem: Problem) -> str:
    """One line; what does not refuse the object says so at its end."""
    return str(problem) if problem.severity == "error" else f"{problem} [{problem.severity}]"


def read_all(paths: Iterable[str]) -> Mapping[str, str]:
    """File → its text, of files, directories and ``-``. Raises InputError for a path that cannot be read."""
    texts: dict[str, str] = {}
    for path in paths:
        if path == "-":
            texts[STDIN] = sys.stdin.buffer.read().decode("utf-8-sig", errors="surrogateescape")
            continue
        is_directory = os.path.isdir(path)
        try:
            files = find(path.rstrip("/") or "/").files if is_directory else (path,)
        except OSError as e:
            raise InputError(f"{path}: {e.strerror}") from e
        for file in files:
            content = read(file)
            if content is Absent.BUSY:
                raise InputError(f"{file}: is open for writing", hint="try again when its writer is done")
            if isinstance(content, Absent):
                raise InputError(
                    f"{file}: " + ("no such file" if content is Absent.MISSING else "cannot be read")
                )
            texts[file] = content.text
    return texts
