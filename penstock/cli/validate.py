"""`penstock validate`: what the daemon would say about manifests, without a daemon, a kernel or an Envoy."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import click
import msgspec

from penstock.errors import InputError, PenstockError
from penstock.explain.conflicts import review_conflicts
from penstock.explain.unreached import review_unreached
from penstock.manifests.problem import Problem
from penstock.manifests.review import review
from penstock.manifests.store import Store
from penstock.routing.review import review_routes
from penstock.routing.review_attach import review_attachments
from penstock.routing.review_edge import review_edge
from penstock.routing.review_traffic import review_traffic
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
    result = Store().apply(texts)
    documents = result.documents.values()
    problems = sorted(
        [
            *result.problems,
            *review(documents),
            *review_routes(documents),
            *review_edge(documents),
            *review_attachments(documents),
            *review_traffic(documents),
            *review_unreached(documents),
            *review_conflicts(documents),
        ],
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
