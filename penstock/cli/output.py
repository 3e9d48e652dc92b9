"""Prints what a command found: as a table for people, as JSON or YAML for programs.

A terminal gets colours; a pipe or a file gets plain columns that `awk` can take apart, never cut to a width.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click

STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
"""Cells of these texts are coloured on a terminal."""


def show(data: Any, output: str, *, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print `data` (plain: dicts, lists, texts, numbers) as `output` says; `rows` are its table."""
    if output == "json":
        click.echo(json.dumps(data, indent=2, ensure_ascii=False))
    elif output == "yaml":
        import yaml

        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), nl=False)
    else:
        table(columns, rows)


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table with the column names in the first line."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(columns, cells)
        return
    lines = [list(columns), *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _rich_table(columns: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    Console().print(drawn)
