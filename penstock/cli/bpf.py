"""`penstock bpf`: the kernel's maps, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show


@click.group()
def bpf() -> None:
    """What is in the kernel's maps: entries, connections, sizes."""


@bpf.command("maps")
@run_dir_option
@output_option
def maps(run_dir: Path, output: str) -> None:
    """Show how full each map is. One that is full refuses more, and `penstock status` says so."""
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("maps")
    rows = [
        (m["map"], m["entries"], m["capacity"], f"{100 * m['entries'] / m['capacity']:.1f} %") for m in found
    ]
    show(found, output, columns=("MAP", "ENTRIES", "CAPACITY", "FULL"), rows=rows)


def _end(end: dict[str, Any]) -> str:
    address = f"[{end['address']}]" if ":" in end["address"] else end["address"]
    return f"{end['name'] or address}:{end['port']}"


@bpf.command("ct")
@click.option("--limit", type=click.IntRange(1), default=100, show_default=True, help="So many at most.")
@run_dir_option
@output_option
def ct(limit: int, run_dir: Path, output: str) -> None:
    """Show connections that the kernel remembers, the latest first.

    The verdict of one that is not CURRENT is looked up again with its next packet: something has changed.
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("conntrack", limit=limit)
    rows = [
        (
            c["protocol"],
            _end(c["source"]),
            _end(c["destination"]),
            c["verdict"],
            c["proxyPort"] or "",
            "yes" if c["current"] else "no",
            f"{c['idleSeconds']:.1f} s",
        )
        for c in found
    ]
    columns = ("PROTOCOL", "FROM", "TO", "VERDICT", "PROXY", "CURRENT", "IDLE")
    show(found, output, columns=columns, rows=rows)


@bpf.command("policy")
@click.argument("endpoint")
@run_dir_option
@output_option
def policy(endpoint: str, run_dir: Path, output: str) -> None:
    """Show the kernel's policy entries of a local workload (NAME, NAMESPACE/NAME or an address).

    Of a packet's peer the longest match of the ports counts, and so of "any peer"; the stronger of the two
    wins (DENY, REDIRECT, ALLOW). What has no entry is denied.
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("kernel_policy", workload=endpoint)
    rows = [
        (
            e["direction"],
            e["peer"],
            f"{e['protocol']} {e['ports']}",
            e["verdict"],
            ", ".join(f"{r['policy']} ({r['file']}:{r['line']})" for r in e["rules"]),
        )
        for e in found
    ]
    show(found, output, columns=("DIRECTION", "PEER", "PORTS", "VERDICT", "BY"), rows=rows)
