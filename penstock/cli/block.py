"""`penstock block`: networks whose packets the node drops before its stack sees them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import DURATION, output_option, run_dir_option
from penstock.cli.output import show

COLUMNS = ("CIDR", "SINCE", "UNTIL", "PACKETS", "BYTES")


@click.group()
def block() -> None:
    """Networks whose packets are dropped at XDP, on the node's own devices.

    The list survives the daemon. Workloads of this node are not meant: for them there are policies.
    """


def _row(entry: dict[str, Any]) -> tuple[Any, ...]:
    return entry["cidr"], entry["since"], entry["until"] or "for good", entry["packets"], entry["bytes"]


@block.command("add")
@click.argument("cidr")
@click.option(
    "--ttl", type=DURATION, default=None, help="For how long: 90s, 10m, 24h, 30d.  [default: for good]"
)
@run_dir_option
@output_option
def add(cidr: str, ttl: timedelta | None, run_dir: Path, output: str) -> None:
    """Block a network, or give one that is blocked a new time."""
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("block_add", cidr=cidr, seconds=ttl.total_seconds() if ttl else None)
    show(found, output, columns=COLUMNS, rows=[_row(found)])


@block.command("delete")
@click.argument("cidr")
@run_dir_option
@output_option
def delete(cidr: str, run_dir: Path, output: str) -> None:
    """Let a network in again. Ends with 1 if it is not blocked."""
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("block_delete", cidr=cidr)
    show(found, output, columns=("CIDR",), rows=[(found["cidr"],)])


@block.command("list")
@run_dir_option
@output_option
def list_blocked(run_dir: Path, output: str) -> None:
    """Show what is blocked, until when, and what that has dropped."""
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("block_list")
    show(found, output, columns=COLUMNS, rows=map(_row, found))
