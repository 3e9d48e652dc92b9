"""`penstock ca`: the certificate authority, and its rotation.

The commands work on the CA directory, so they need no daemon if they are told where it is.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.ca_serve import serve, token
from penstock.cli.options import (
    DURATION,
    ca_dir_option,
    ca_directory,
    output_option,
    passphrase_option,
    run_dir_option,
)
from penstock.cli.output import show
from penstock.errors import PenstockError, UsageError

if TYPE_CHECKING:
    from penstock.mtls.reports import NodeState
    from penstock.mtls.rotation import Rotation

MEANING = {
    "trust": "the new root stands in every trust bundle, beside the old one",
    "intermediate trust": "the revocation list of the new intermediate is with every node, if there is any",
    "sign": "the new CA signs, and every certificate is issued anew under it",
    "drop": "the old root leaves every trust bundle",
    "return": "the old CA signs again, and every certificate is issued anew under it",
    "withdraw": "what was new is trusted no more",
}


@click.group()
def ca() -> None:
    """The certificate authority: show it, rotate it, serve it to other nodes."""


ca.add_command(serve)
ca.add_command(token)


@ca.command("show")
@ca_dir_option
@run_dir_option
@output_option
def show_(ca_dir: Path | None, run_dir: Path, output: str) -> None:
    """Show the CA's certificates: which is trusted, which signs, and how long each holds."""
    from penstock.mtls.show import authorities, remaining

    found = authorities(ca_directory(ca_dir, run_dir), time.time())
    rows = [
        (
            c["role"],
            c["subject"],
            "yes" if c["trusted"] else "",
            "yes" if c["signs"] else "",
            "here" if c["key_present"] else "away",
            c["key"],
            c["not_after"],
            remaining(c["remaining_seconds"]),
            c["sha256"],
        )
        for c in found["certificates"]
    ]
    columns = ["ROLE", "SUBJECT", "TRUSTED", "SIGNS", "KEY", "ALGORITHM", "NOT-AFTER", "REMAINING", "SHA-256"]
    show(found, output, columns=columns, rows=rows)


@ca.command()
@ca_dir_option
@run_dir_option
@output_option
def status(ca_dir: Path | None, run_dir: Path, output: str) -> int:
    """Show whether something is being rotated, at which stage, and what each node has proven.

    Exit 1 while a stage is not proven by every node.
    """
    from penstock.mtls.show import authorities

    found = authorities(ca_directory(ca_dir, run_dir), time.time())["rotation"]
    if output == "table":
        ahead = " → ".join(found["ahead"])
        said = f"the {found['kind']} is being rotated since {found['started']}: {ahead}"
        click.echo(said if found["stage"] else "nothing is being rotated")
    rows = [
        (
            n["node"],
            n["daemon"],
            f"{n['moved']}/{n['certificates']}",
            "yes" if n["proven"] else "no",
            n["missing"],
        )
        for n in found["nodes"]
    ]
    show(found, output, columns=("NODE", "DAEMON", "MOVED", "PROVEN", "MISSING"), rows=rows)
    return 0 if all(n["proven"] for n in found["nodes"]) else 1


class _Teller:
    """Prints each stage once, and of each node what is new."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._said: dict[str, str] = {}
        self._stage = ""
        self._since = self._began = time.monotonic()
        self.stages: list[dict[str, Any]] = []

    def __call__(self, stage: Rotation, states: tuple[NodeState, ...]) -> None:
        if stage.stage != self._stage:
            self._close()
            self._stage, self._said, self._since = stage.stage, {}, time.monotonic()
            meaning = MEANING.get(f"{stage.kind} {stage.stage}", MEANING[stage.stage])
            self._echo(f"{stage.stage}: {meaning}")
        for state in states:
            report, missing = state.report, state.missing(stage)
            if missing != self._said.get(report.node):
                self._said[report.node] = missing
                proof = f"acknowledged by Envoy, {report.moved} of {report.leaves} certificates"
                self._echo(f"  {'…' if missing else '✓'} {report.node}: {missing or proof}")

    def _close(self) -> None:
        if self._stage:
            nodes = list(self._said)
            took = round(time.monotonic() - self._since, 3)
            self.stages.append({"stage": self._stage, "seconds": took, "nodes": nodes})

    def end(self, said: str) -> None:
        self._close()
        self._echo(f"{said} in {time.monotonic() - self._began:.1f} s")

    def _echo(self, text: str) -> None:
        if not self._quiet:
            click.echo(text)


@ca.command()
@click.option(
    "--root", "kind", flag_value="root", default=None, help="A new root, and all below it.  [default]"
)
@click.option(
    "--intermediate", "kind", flag_value="intermediate", help="A new intermediate under the same root."
)
@click.option("--abort", is_flag=True, help="Roll back the rotation under way, until its last stage.")
@click.option(
    "--without", multiple=True, metavar="NODE", help="Do not wait for a node that is gone for good."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--timeout", type=DURATION, default="60s", show_default=True)
@ca_dir_option
@passphrase_option
@run_dir_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def rotate(
    kind: str | None,
    abort: bool,
    without: tuple[str, ...],
    yes: bool,
    timeout: timedelta,
    ca_dir: Path | None,
    ca_passphrase_file: Path | None,
    run_dir: Path,
    output: str,
) -> None:
    """Replace the root (or the intermediate) of the CA, in stages, each proven by every node.

    Nothing restarts and no connection is closed. It may be stopped at any moment: the same command goes on
    where it was. Exit 1 if a stage is not proven in time; the reason names the nodes that hold it up.
    """
    from penstock.mtls import keys, reports, rotate, rotation
    from penstock.mtls.show import authorities

    directory = ca_directory(ca_dir, run_dir)
    before = authorities(directory, time.time())
    now = rotation.current(directory)
    if not abort:
        _check(now, kind)
    if not yes:
        _confirm(now, kind or "root", abort, len(before["rotation"]["nodes"]))
    for node in without:
        reports.forget(directory, node)
    if abort:
        now = rotation.roll_back(directory)
    elif now is None:
        passphrase = keys.passphrase(ca_passphrase_file)
        now = rotation.begin(directory, rotation.Kind(kind or "root"), before["trust_domain"], passphrase)
    teller = _Teller(quiet=output == "json")
    asyncio.run(rotate.drive(directory, now, within=timeout.total_seconds(), tell=teller))
    after = authorities(directory, time.time())
    teller.end(f"{now.kind} {'rolled back' if abort else 'rotated'}")
    if output == "json":
        result = {
            "kind": now.kind,
            "result": "rolled back" if abort else "rotated",
            "stages": teller.stages,
            "certificates": after["certificates"],
        }
        show(result, output, columns=(), rows=())


def _check(now: Rotation | None, kind: str | None) -> None:
    if now is None:
        return
    if now.going_back:
        raise PenstockError(
            f"a rotation of the {now.kind} is being rolled back",
            hint="finish that: penstock ca rotate --abort",
        )
    if kind not in (None, now.kind):
        raise UsageError(
            f"a rotation of the {now.kind} is under way", hint=f"go on with --{now.kind}, or --abort"
        )


def _confirm(now: Rotation | None, kind: str, abort: bool, nodes: int) -> None:
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked", hint="say --yes")
    if abort:
        question = f"Roll back the rotation of the {now.kind if now else 'CA'}?"
    elif now is not None:
        question = f"Go on with the rotation of the {now.kind}, at stage {now.stage}?"
    else:
        question = f"Make a new {kind} and move {nodes} nodes to it?"
    click.confirm(question, abort=True)
