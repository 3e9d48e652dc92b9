"""`penstock cert`: the certificates of this node's workloads."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import (
    DURATION,
    ca_dir_option,
    ca_directory,
    output_option,
    passphrase_option,
    run_dir_option,
)
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
    for each in found["withheld"]:
        click.echo(f"{each['workload']}: no certificate: {each['reason']}", err=True)
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


@cert.command()
@click.argument("name", metavar="WORKLOAD|SERIAL")
@click.option("--timeout", type=DURATION, default="10s", show_default=True)
@ca_dir_option
@passphrase_option
@run_dir_option
@output_option
def revoke(
    name: str,
    timeout: timedelta,
    ca_dir: Path | None,
    ca_passphrase_file: Path | None,
    run_dir: Path,
    output: str,
) -> int:
    """Take certificates back: refused from now on by every node, and what is open under them is closed.

    WORKLOAD is NAMESPACE/NAME (or `node NAME`): all that it has, and it gets no other until `cert restore`.
    SERIAL, in hexadecimal, is one certificate; if that is a workload's newest, the same holds. Returns when
    every node has it in force; exit 1, naming the others, if that is not so in time.
    """
    import asyncio

    from penstock.mtls import keys, takeback
    from penstock.mtls.ca import opened

    ca = opened(ca_directory(ca_dir, run_dir), keys.passphrase(ca_passphrase_file))
    taken = ca.revoke(name)
    states = asyncio.run(takeback.in_force(ca.directory, ca.revoked.number, timeout.total_seconds()))
    nodes = takeback.nodes(states, ca.revoked.number)
    rows = [(c.owner, c.serial, c.spiffe_id) for c in taken]
    data = {"revoked": takeback.entries(taken), "nodes": nodes}
    show(data, output, columns=("OWNER", "SERIAL", "SPIFFE-ID"), rows=rows)
    for node in nodes:
        if node["missing"]:
            click.echo(f"not in force on {node['node']}: {node['missing']}", err=True)
    return 1 if any(node["missing"] for node in nodes) else 0


@cert.command()
@click.argument("name", metavar="WORKLOAD")
@ca_dir_option
@passphrase_option
@run_dir_option
def restore(name: str, ca_dir: Path | None, ca_passphrase_file: Path | None, run_dir: Path) -> None:
    """Let a workload whose certificates were revoked have a new one. The old ones stay revoked."""
    from penstock.mtls import keys
    from penstock.mtls.ca import opened

    ca = opened(ca_directory(ca_dir, run_dir), keys.passphrase(ca_passphrase_file))
    click.echo(f"{ca.restore(name)} may have a new certificate")


@cert.command()
@ca_dir_option
@run_dir_option
@output_option
def revoked(ca_dir: Path | None, run_dir: Path, output: str) -> None:
    """Show what is revoked and would still hold, and who gets no certificate."""
    import time

    from penstock.mtls import revocation, takeback
    from penstock.mtls.show import moment

    held = revocation.load(ca_directory(ca_dir, run_dir), time.time())
    rows = [(c.owner, c.serial, moment(c.at), moment(c.not_after)) for c in held.certificates]
    rows += [(owner, "(any new one)", moment(at), "") for owner, at in held.withheld.items()]
    withheld = {owner: moment(at) for owner, at in held.withheld.items()}
    data = {"number": held.number, "certificates": takeback.entries(held.certificates), "withheld": withheld}
    show(data, output, columns=("OWNER", "SERIAL", "REVOKED", "NOT-AFTER"), rows=rows)
