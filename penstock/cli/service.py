"""`penstock service`: what the kernel makes of Service addresses."""

from __future__ import annotations

from pathlib import Path

import click

from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show


@click.group()
def service() -> None:
    """Services that the kernel translates or steers, with their backends."""


@service.command("list")
@run_dir_option
@output_option
def list_services(run_dir: Path, output: str) -> None:
    """Show every Service port in the kernel.

    WAY is "route" where its packets go to Envoy, which knows the routes, and "connect" where a socket that
    connects gets one of the backends instead.
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("services")
    rows = [
        (
            s["name"],
            s["address"],
            f"{s['port']}/{s['protocol']}",
            "route" if s["routed"] else "connect",
            ", ".join(f"{b['name']}:{b['port']}" for b in s["backends"]) or "none",
        )
        for s in found
    ]
    show(found, output, columns=("NAME", "ADDRESS", "PORT", "WAY", "BACKENDS"), rows=rows)
