"""`penstock identity`: who the numbers are."""

from __future__ import annotations

from pathlib import Path

import click

from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show


@click.group()
def identity() -> None:
    """Identities: numbers, labels, workloads, addresses."""


@identity.command("list")
@run_dir_option
@output_option
def list_identities(run_dir: Path, output: str) -> None:
    """Show every identity of this node, its workloads, and the addresses that the kernel takes for it."""
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("identities")
    rows = [
        (
            i["identity"],
            i["name"] or ", ".join(i["workloads"]),
            ", ".join(f"{k}={v}" if v else k for k, v in sorted(i["labels"].items())),
            ", ".join(i["addresses"]),
        )
        for i in found
    ]
    show(found, output, columns=("IDENTITY", "WHO", "LABELS", "ADDRESSES"), rows=rows)
