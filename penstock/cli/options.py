"""Options that several commands share."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import click

RUN_DIR = Path("/run/penstock")

run_dir_option = click.option(
    "--run-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=RUN_DIR,
    show_default=True,
    envvar="PENSTOCK_RUN_DIR",
    show_envvar=True,
    help="Run directory of the daemon meant.",
)
"""Adds `run_dir: Path`."""

output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "json", "yaml"]),
    default="table",
    show_default=True,
    help="How to print.",
)
"""Adds `output: str`; give it to `penstock.cli.output.show`."""


class _Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions
    name = "duration"
    _units: ClassVar = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"(\d+)([smhd])", value)
        if found is None or int(found[1]) == 0:
            self.fail(f"{value!r} is not a duration such as 90s, 10m, 24h or 30d", param, ctx)
        try:
            return timedelta(**{self._units[found[2]]: int(found[1])})
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)


DURATION = _Duration()
"""A positive time span in one unit: 90s, 10m, 24h, 30d."""

passphrase_option = click.option(
    "--ca-passphrase-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Passphrase of the CA's keys.  [default: systemd credential penstock-ca-passphrase]",
)
"""Adds `ca_passphrase_file: Path | None`; give it to `penstock.mtls.keys.passphrase`."""

ca_dir_option = click.option(
    "--ca-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The CA's directory.  [default: that of the daemon]",
)


def ca_directory(ca_dir: Path | None, run_dir: Path) -> Path:
    """The CA's directory, if need be as the daemon tells it. Raises NoDaemonError, or PenstockError."""
    from penstock.control import ControlClient

    if ca_dir is not None:
        return ca_dir
    with ControlClient(run_dir) as client:
        return Path(client.call("ca")["directory"])
