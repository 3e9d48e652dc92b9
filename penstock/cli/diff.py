"""`penstock diff`: what manifests would change if they were put in force."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import run_dir_option
from penstock.errors import UsageError

_MARKS = {"added": "+", "removed": "-", "changed": "~"}
_COLOURS = {"+": "green", "-": "red", "~": "yellow"}
_MOST_FIELDS = 6
"""Of one resource that are shown to people; JSON has all."""


@click.command(short_help="What a change would do to kernel and Envoy.")
@click.option(
    "-f",
    "--file",
    "paths",
    multiple=True,
    required=True,
    metavar="PATH",
    help="The manifests that would be in force: a file, or a directory that is read recursively.",
)
@click.option(
    "--from",
    "before",
    multiple=True,
    metavar="PATH",
    help="Compare with these manifests, without a daemon (default: with what the daemon has in force).",
)
@click.option("--node", default=None, help="With --from: as this node sees it (default: the first Node).")
@run_dir_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def diff(
    paths: tuple[str, ...], before: tuple[str, ...], node: str | None, run_dir: Path, output: str
) -> int:
    """Say what would change if the manifests at PATH were all that there is.

    \b
    penstock diff -f new/                    against the running daemon
    penstock diff --from old/ -f new/        between two directories, without a daemon

    Objects come first, then entries of the kernel's tables in words, then Envoy's resources with the fields
    that differ. A workload whose network namespace is not known is taken as there.

    Exit code 0 nothing would change, 1 something would, 2 bad usage or a refused manifest, 3 no daemon.
    """
    from penstock.cli.validate import read_all

    if node and not before:
        raise UsageError("--node is for --from: a daemon knows its own node")
    texts = read_all(paths)
    found = _offline(read_all(before), texts, node) if before else _live(texts, run_dir)
    if output == "json":
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show(found)
    return 2 if found["refused"] else 1 if found["changed"] else 0


def _live(texts: Mapping[str, str], run_dir: Path) -> dict[str, Any]:
    from penstock.cli.validate import since
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        return dict(client.call("diff", texts=dict(texts), since=since(texts)))


def _offline(old: Mapping[str, str], new: Mapping[str, str], node: str | None) -> dict[str, Any]:
    from penstock.cli.validate import since
    from penstock.diff import differences, planned
    from penstock.explain import offline
    from penstock.manifests.store import Store

    first, second = (Store().apply(texts, since(texts)) for texts in (old, new))
    at = node or offline.node_of({**first.documents, **second.documents})
    before = planned(first.documents, at)
    return differences(before, planned(second.documents, at, before), second.problems)


def show(found: dict[str, Any]) -> None:
    """For people: one line for each thing that would come, go or change."""
    for text in found["refused"]:
        click.echo(f"refused: {text}")
    for each in found["objects"]:
        name = f"{each['namespace']}/{each['name']}" if each["namespace"] else each["name"]
        _line(each, f"{each['kind']} {name} ({each['file']}:{each['line']})")
    if found["kernel"]:
        click.echo(f"kernel: {_count(found['kernel'])}")
    for each in found["kernel"]:
        text = f"{each['table']:9} {each['entry']}: "
        if each["change"] == "changed":
            text += f"{each['before']} → {each['after']}"
        else:
            text += each["after"] or each["before"]
        _line(each, text, 2)
    if found["envoy"]:
        click.echo(f"Envoy: {_count(found['envoy'])}")
    for each in found["envoy"]:
        _line(each, f"{each['type']} {each['name']}", 2)
        for field in each["fields"][:_MOST_FIELDS]:
            click.echo(f"      {field['field']}: {_short(field['before'])} → {_short(field['after'])}")
        if len(each["fields"]) > _MOST_FIELDS:
            click.echo(f"      and {len(each['fields']) - _MOST_FIELDS} more fields")
    for each in found["pending"]:
        click.echo(f"would wait: {each['kind']} {each['namespace']}/{each['name']}: {each['message']}")
    for each in found["warnings"]:
        name = f"{each['kind']} {each['namespace']}/{each['name']}"
        click.echo(f"warning: {each['file']}:{each['line']}: {name}: {each['message']} [{each['code']}]")
    if not found["changed"] and not found["refused"]:
        click.echo("nothing would change")


def _line(each: Mapping[str, Any], text: str, indent: int = 0) -> None:
    mark = _MARKS[each["change"]]
    click.echo(" " * indent + click.style(mark, fg=_COLOURS[mark]) + " " + text)


def _count(changes: list[dict[str, Any]]) -> str:
    counts = {kind: sum(c["change"] == kind for c in changes) for kind in _MARKS}
    return ", ".join(f"{number} {kind}" for kind, number in counts.items() if number)


def _short(value: Any) -> str:
    text = "–" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:97] + "..."
