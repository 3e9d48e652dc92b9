"""`penstock fqdn`: what workloads learned from DNS."""

from __future__ import annotations

from pathlib import Path

import click

from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show


@click.group()
def fqdn() -> None:
    """Names that policies allow (toFQDNs), as workloads learned them from DNS."""


@fqdn.command("list")
@run_dir_option
@output_option
def list_names(run_dir: Path, output: str) -> None:
    """Show every name that a workload asked for and a rule of its names, with its addresses.

    TTL is what is left of the answer's time, in seconds. STATE is `valid`, `grace` (the time is over, the
    address counts a while longer) or `connected` (it counts for the connections that go on).
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("fqdn")
    rows = [
        (
            e["name"],
            e["address"],
            e["ttl_left"],
            e["state"],
            e["workload"],
            ", ".join(f"{r['policy']} ({r['file']}:{r['line']})" for r in e["rules"]),
        )
        for e in found
    ]
    show(found, output, columns=("NAME", "ADDRESS", "TTL", "STATE", "WORKLOAD", "RULES"), rows=rows)
