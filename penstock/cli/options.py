"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

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
