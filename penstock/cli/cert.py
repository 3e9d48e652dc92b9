"""`penstock cert`: the certificates of this node's workloads."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import DURATION, output_option, run_dir_option
from penstock.cli.output import show
from penstock.errors import UsageError


@click.group()
def cert() -> None:
    """Certificates of this node's workloads."""


def _uses(entry: dict[str, Any]) -> str:
    return ", ".join(f"{address} {state}" for address, state in entry["envoy"].items())


@cert.command("list")
@run_dir_option
@output_option
@click.option(
    "--expiring",
    type=DURATION,
    default=None,
    metavar="SPAN",
    help="Exit 1 if one ends within SPAN (30d, 6h).",
)
def list_(run_dir: Path, output: str, expiring: timedelta | None) -> int:
    """Show every certificate: whose, who signed it, how long it holds, and where Envoy uses it."""
    from penstock.control import ControlClient
    from penstock.mtls.show import remaining

    with ControlClient(run_dir) as client:
        found = client.call("certs")
    entries = found["certificates"]
    columns = [
        "WORKLOAD",
        "SPIFFE-ID",
        "SERIAL",
        "ISSUER",
        "NOT-BEFORE",
        "NOT-AFTER",
        "REMAINING",
        "NODE",
        "IN-USE",
    ]
    rows = [
        (
            e["workload"],
            e["spiffe_id"],
            e["serial"],
            e["issuer"],
            e["not_before"],
            e["not_after"],
            remaining(e["remaining_seconds"]),
            e["node"],
            _uses(e),
        )
        for e in entries
    ]
    show(found, output, columns=columns, rows=rows)
    for entry in entries:
        if entry["error"]:
            click.echo(f"{entry['workload']}: not renewed: {entry['error']}", err=True)
    if expiring is None:
        return 0
    near = [e for e in entries if e["remaining_seconds"] < expiring.total_seconds()]
    for entry in near:
        click.echo(f"{entry['workload']} ends at {entry['not_after']}", err=True)
    return 1 if near else 0


@cert.command()
@click.argument("name", metavar="WORKLOAD|ADDRESS")
@run_dir_option
@click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", show_default=True
)
def inspect(name: str, run_dir: Path, output: str) -> int:
    """Show one workload's certificate with its chain, and whether it holds by every rule.

    Exit 1 if it does not. WORKLOAD is NAME or NAMESPACE/NAME.
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("cert_inspect", workload=name)
    if output == "text":
        for entry in found:
            _describe(entry)
    else:
        show(found, output, columns=(), rows=())
    return 0 if all(entry["valid"] for entry in found) else 1


def _describe(entry: dict[str, Any]) -> None:
    from penstock.mtls.show import remaining

    valid = "yes" if entry["valid"] else f"no: {entry['problem']}"
    rows = [
        ("workload", f"{entry['workload']} on {entry['node']}"),
        ("SPIFFE id", entry["spiffe_id"]),
        ("valid", valid),
        (
            "holds",
            f"{entry['not_before']} to {entry['not_after']}, {remaining(entry['remaining_seconds'])} left",
        ),
        ("issued", entry["issued"]),
        ("key", entry["key"]),
        ("serial", entry["serial"]),
        ("SHA-256", entry["sha256"]),
        ("in use", _uses(entry)),
        ("error", entry["error"]),
    ]
    for what, authorities in (("issuer", entry["chain"]), ("root", entry["roots"])):
        for each in authorities:
            rows.append((what, f"{each['subject']}, to {each['not_after']}"))
            rows.append(("", f"SHA-256 {each['sha256']}"))
    for name, value in rows:
        if value:
            click.echo(f"{name:10} {value}")
    click.echo(entry["pem"], nl=False)


@cert.command()
@click.argument("names", nargs=-1, metavar="[WORKLOAD]...")
@click.option("--all", "every", is_flag=True, help="Those of every workload of this node.")
@click.option("--timeout", type=DURATION, default="30s", show_default=True)
@run_dir_option
@output_option
def rotate(names: tuple[str, ...], every: bool, timeout: timedelta, run_dir: Path, output: str) -> None:
    """Replace certificates now, with new keys; return when Envoy has acknowledged them.

    No connection is closed: those that are open go on, new ones use the new certificate.
    """
    from penstock.control import ControlClient

    if bool(names) == every:
        raise UsageError("say which workloads, or --all", hint="penstock cert list")
    seconds = timeout.total_seconds()
    with ControlClient(run_dir) as client:
        found = client.call(
            "cert_rotate", timeout=seconds + 10, names=list(names), all=every, seconds=seconds
        )
    rows = [(e["workload"], e["old_serial"], e["serial"], e["not_after"]) for e in found]
    show(found, output, columns=("WORKLOAD", "OLD-SERIAL", "SERIAL", "NOT-AFTER"), rows=rows)
