"""`penstock policy`: the policies, and what they come to for one workload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show


@click.group()
def policy() -> None:
    """Policies: whom they select, and what they say about a workload."""


@policy.command("list")
@run_dir_option
@output_option
def list_policies(run_dir: Path, output: str) -> None:
    """Show every policy: how many it selects, what it closes, and how many kernel entries come of it."""
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("policies")
    rows = [
        (
            p["policy"],
            f"{p['file']}:{p['line']}",
            len(p["selects"]),
            ", ".join(p["defaultDeny"]),
            p["rules"],
            p["entries"],
        )
        for p in found
    ]
    columns = ("POLICY", "WHERE", "SELECTS", "CLOSES", "RULES", "ENTRIES")
    show(found, output, columns=columns, rows=rows)


@policy.command("get")
@click.argument("endpoint")
@run_dir_option
@output_option
def get_policy(endpoint: str, run_dir: Path, output: str) -> None:
    """Show what all policies together say about one workload (NAME, NAMESPACE/NAME or an address).

    `penstock bpf policy` shows the kernel's entries that were made of it.
    """
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        found = client.call("policy", workload=endpoint)
    columns = ("DIRECTION", "ACTION", "PEERS", "PORTS", "REQUESTS", "BY")
    show(found, output, columns=columns, rows=_rows(found))


def _words(what: list[str] | None, otherwise: str) -> str:
    return otherwise if what is None else "; ".join(what) or "none"


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for way in ("ingress", "egress"):
        for rule in found[way]["rules"]:
            yield (
                way,
                rule["action"],
                _words(rule["peers"], "any"),
                _words(rule["ports"], "any"),
                _words(rule["http"], ""),
                f"{rule['policy']} ({rule['file']}:{rule['line']})",
            )
        closing = ", ".join(f"{p['policy']} ({p['file']}:{p['line']})" for p in found[way]["closedBy"])
        yield way, "deny" if found[way]["defaultDeny"] else "allow", "all else", "any", "", closing
