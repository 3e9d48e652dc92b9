"""`penstock observe`: flows from the kernel and requests from Envoy, one line each."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import run_dir_option

_COLOURS = {"FORWARDED": "green", "SERVED": "green", "REDIRECTED": "cyan", "DROPPED": "red", "DENIED": "red"}


def _party(party: dict[str, Any]) -> str:
    address = f"[{party['address']}]" if ":" in party["address"] else party["address"]
    who = party["name"] or address
    identity = f" (id {party['identity']})" if party.get("identity") else ""
    return f"{who}:{party['port']}{identity}"


def line(record: dict[str, Any]) -> str:
    """One record for people."""
    when = datetime.fromtimestamp(record["time"]).strftime("%H:%M:%S.%f")[:-3]
    verdict = click.style(f"{record['verdict']:10}", fg=_COLOURS.get(record["verdict"]))
    parties = f"{_party(record['source'])} -> {_party(record['destination'])}"
    head = f"{when} {verdict} {record['protocol']:8} {parties}"
    if record["type"] == "flow":
        rule = f" by {record['rule']}" if record["rule"] else ""
        return f"{head} {record['reason']}{rule}"
    if record["type"] == "dns":
        told = f" {' '.join(record['addresses'])}" if record["addresses"] else ""
        asked = f"{record['kind']} {record['name']} {record['rcode']}{told}"
        return f"{head} {asked} {record['latency_us'] / 1000:.2f} ms"
    what = f"{record['method']} {record['path']}" if "method" in record else "connection"
    upstream = f" at {_party(record['upstream'])}" if record["upstream"]["address"] else ""
    code = record["code"] or ",".join(record["flags"]) or "-"
    why = f" {record['reason']}" if record.get("reason") else ""
    rule = f" by {record['rule']}" if record.get("rule") else ""
    return f"{head} {what} {code}{upstream} {record['latency_us'] / 1000:.2f} ms{why}{rule}"


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with each new record, until interrupted.")
@click.option("--last", type=click.IntRange(0), default=20, show_default=True, help="Begin with the last N.")
@run_dir_option
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def observe(follow: bool, last: int, run_dir: Path, output: str) -> None:
    """Show what happened: verdict, who, to whom, why; and for requests method, path, code and latency.

    With -o json one object a line.
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        for record in client.stream("observe", last=last, follow=follow):
            click.echo(json.dumps(record) if output == "json" else line(record))
