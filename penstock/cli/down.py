"""`penstock down`: everything that a daemon put on this node goes."""

from __future__ import annotations

from pathlib import Path

import click

from penstock.cli.options import run_dir_option


@click.command()
@run_dir_option
def down(run_dir: Path) -> None:
    """Remove programs, maps, rules, routes and Envoy. Running it twice is fine.

    Run it in the network namespace that the daemon ran in, after the daemon has ended.
    """
    from penstock.teardown import tear_down

    tear_down(run_dir.resolve())
