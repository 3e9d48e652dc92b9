"""`penstock xds`: who speaks xDS with the daemon, what each has acknowledged, and how gRPC's client joins."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show


@click.group()
def xds() -> None:
    """The daemon's xDS clients: the node's Envoy, and gRPC programs that dial `xds:///`."""


@xds.command()
@run_dir_option
@output_option
def clients(run_dir: Path, output: str) -> None:
    """Show every client and the state of each of its resources, as client status discovery (CSDS) tells it.

    The table counts resources by state and lists what is refused; -o json has every resource.
    """
    from penstock.envoy.bootstrap import clients_socket, xds_socket
    from penstock.xds.query import fetch_status

    found = fetch_status(run_dir, (xds_socket(run_dir), clients_socket(run_dir)))
    show(found, output, columns=("CLIENT", "AGENT", "TYPE", "STATE", "COUNT", "WHAT"), rows=_rows(found))


def _rows(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for client in found:
        who = (client["node"], client["agent"])
        counts = Counter((r["type"], r["state"]) for r in client["resources"] if not r["error"])
        rows += [(*who, kind, state, count, "") for (kind, state), count in sorted(counts.items())]
        refused = [r for r in client["resources"] if r["error"]]
        rows += [(*who, r["type"], r["state"], 1, f"{r['name']}: {r['error']}") for r in refused]
    return rows


@xds.command()
@run_dir_option
@click.option("--id", "node_id", default="grpc", show_default=True, help="What the client calls itself.")
def bootstrap(run_dir: Path, node_id: str) -> None:
    """Print the bootstrap of gRPC's own xDS client; give the file as GRPC_XDS_BOOTSTRAP."""
    from penstock.envoy.bootstrap import clients_socket

    server = {
        "server_uri": f"unix:{clients_socket(run_dir)}",
        "channel_creds": [{"type": "insecure"}],
        "server_features": ["xds_v3"],
    }
    click.echo(json.dumps({"xds_servers": [server], "node": {"id": node_id}}, indent=2))
