"""`penstock get`: objects with the status that their API defines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show


def _state(item: dict[str, Any]) -> str:
    status = item.get("status") or {}
    conditions = list(status.get("conditions", ()))
    for parent in status.get("parents", ()):
        conditions += parent["conditions"]
    bad = [c for c in conditions if c["status"] != "True"]
    return f"{bad[0]['type']}=False: {bad[0]['reason']}" if bad else ("ok" if conditions else "")


@click.command()
@click.argument("kind")
@click.argument("name", required=False)
@click.option("-n", "--namespace", default="default", show_default=True)
@click.option("-A", "--all-namespaces", is_flag=True, help="Of every namespace.")
@run_dir_option
@output_option
def get(
    kind: str, name: str | None, namespace: str, all_namespaces: bool, run_dir: Path, output: str
) -> None:
    """Show objects of KIND (in any case, also plural or short), or the one called NAME, with their status.

    Kinds: Workload, Node, Service, Endpoints, EndpointSlice, Namespace, CiliumNetworkPolicy (cnp),
    CiliumClusterwideNetworkPolicy (ccnp), NetworkPolicy (netpol), HTTPRoute, GRPCRoute, ReferenceGrant,
    PeerAuthentication.
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call(
            "get", kind=kind, object_name=name, namespace=namespace, all_namespaces=all_namespaces
        )
    items = found["items"] if name is None else [found]
    rows = [
        (
            item["metadata"].get("namespace", ""),
            item["metadata"]["name"],
            item["metadata"]["generation"],
            _state(item),
        )
        for item in items
    ]
    show(found, output, columns=("NAMESPACE", "NAME", "GENERATION", "STATUS"), rows=rows)
