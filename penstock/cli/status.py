"""`penstock status`: what is in force, and what is not yet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show


@click.command()
@run_dir_option
@output_option
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=None,
    metavar="SECONDS",
    help="Read the folder again, and wait until every object is settled.",
)
def status(run_dir: Path, output: str, wait: float | None) -> int:
    """Show every object with its state, and what the daemon is waiting for.

    An object is settled when it is in force in the kernel and in Envoy, refused, or pending for a reason
    outside Penstock. With --wait: exit 0 when all are settled, 1 when the time is over; a daemon that is just
    starting is waited for.
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        if wait is None:
            found = client.call("status")
        else:
            deadline = time.monotonic() + wait
            client.wait_for_daemon(wait)
            left = max(deadline - time.monotonic(), 0.0)
            found = client.call("wait", timeout=left + 30, seconds=left)
    columns = ("STATE", "KIND", "NAMESPACE", "NAME", "WHERE", "MESSAGE")
    rows = [
        (o["state"], o["kind"], o["namespace"], o["name"], f"{o['file']}:{o['line']}", o["message"])
        for o in found["objects"]
    ]
    if output == "table":
        _head(found)
    show(found, output, columns=columns, rows=rows)
    for problem in found["problems"] if output == "table" else ():
        if problem["severity"] != "error":
            click.echo(f"{problem['severity']}: {problem['text']}", err=True)
    if wait is not None and not found["settled"]:
        for missing in found["missing"]:
            click.echo(f"not yet: {missing['kind']} {missing['namespace']}/{missing['name']}", err=True)
        return 1
    return 0


def _head(found: dict[str, Any]) -> None:
    envoy = found["envoy"]
    state = "settled" if found["settled"] else "busy" if found["busy"] else "not settled"
    click.echo(
        f"node {found['node']}: {state}; {len(found['objects'])} objects, "
        f"{found['certificates']} certificates"
    )
    if found["policy_enforcement"] != "default":
        click.echo(f"policy enforcement: {found['policy_enforcement']}")
    connected = "connected" if envoy["connected"] else "not connected"
    click.echo(
        f"Envoy {envoy['pid'] or '-'}: {connected}, {envoy['listeners']} listeners, {envoy['nacks']} refusals"
    )
    dns = found["dns"]
    if dns["bound"] and not dns["ready"]:
        why = f" ({dns['trouble']})" if dns["trouble"] else ""
        click.echo(f"DNS proxy {dns.get('pid') or '-'}: not ready{why}, what is asked of it is dropped")
    if dns["hung"]:
        click.echo(
            f"warning: the DNS proxy hung and was replaced, {dns['hung']} times since the daemon began"
        )
    if dns.get("too_many_lists"):
        click.echo(
            f"warning: {dns['too_many_lists']} addresses are in more lists of names than the kernel holds"
        )
    for name, (used, size) in found["limits"].items():
        if used * 10 > size * 8:
            click.echo(f"nearly full: {name}: {used} of {size}")
    for warning in (*found["pressure"], *found["floods"], *found["certificate_health"]["warnings"]):
        click.echo(f"warning: {warning}")
    for error in found["errors"]:
        click.echo(f"error: {error}")
    if found["waiting_for"]:
        click.echo(f"waiting: {found['waiting_for']}")
