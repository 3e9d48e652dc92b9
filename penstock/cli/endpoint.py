"""`penstock endpoint`: local workloads as the kernel knows them."""

from __future__ import annotations

from pathlib import Path

import click

from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show


@click.group()
def endpoint() -> None:
    """Local workloads, as the kernel knows them."""


@endpoint.command("list")
@run_dir_option
@output_option
def list_endpoints(run_dir: Path, output: str) -> None:
    """Show every local workload that the kernel knows, one line for each address.

    INGRESS and EGRESS say what becomes of what no rule names (open, closed), and how many entries there are.
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("endpoints")
    rows = [
        (
            e["name"],
            e["address"],
            e["identity"],
            *(
                f"{'closed' if e[way]['defaultDeny'] else 'open'} ({e[way]['entries']})"
                for way in ("ingress", "egress")
            ),
            e["meshMode"],
            e["interface"] or e["ifindex"],
        )
        for e in found
    ]
    columns = ("NAME", "ADDRESS", "IDENTITY", "INGRESS", "EGRESS", "MESH", "INTERFACE")
    show(found, output, columns=columns, rows=rows)


@endpoint.command("get")
@click.argument("name")
@run_dir_option
@output_option
def get_endpoint(name: str, run_dir: Path, output: str) -> None:
    """Show one workload (NAME, NAMESPACE/NAME or an address): who it is, and which policies select it."""
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("endpoint", workload=name)
    rows = [
        ("name", found["name"]),
        ("addresses", ", ".join(found["addresses"])),
        ("in the kernel", "yes" if found["inKernel"] else "no"),
        ("identity", found["identity"]),
        ("SPIFFE id", found["spiffeId"]),
        ("labels", ", ".join(f"{k}={v}" for k, v in sorted(found["labels"].items()))),
        ("ports", ", ".join(f"{p['name']} {p['port']}/{p['protocol']}" for p in found["ports"])),
        ("node", found["node"] or "not in the mesh"),
        ("mesh mode", found["meshMode"]),
    ]
    rows += [("policy", f"{p['policy']} ({p['file']}:{p['line']})") for p in found["policies"]]
    show(found, output, columns=("FIELD", "VALUE"), rows=rows)
