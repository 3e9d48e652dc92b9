"""The command line. One module per command, imported only when it is asked for: `penstock --help` is instant.

Errors are told in one place (`main`): message and hint on stderr, and the exit code of the error's
class: 1 the thing asked about is not so, 2 bad usage or bad input, 3 no daemon.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from penstock.errors import PenstockError

COMMANDS = {
    "bench": "Measure what Penstock costs on this machine.",
    "block": "Networks that the node drops packets of before its stack sees them.",
    "bpf": "What is in the kernel's maps: entries, connections, sizes.",
    "ca": "The certificate authority: show it, rotate it, serve it to other nodes.",
    "cert": "Certificates of this node's workloads.",
    "check": "Look whether this machine can run Penstock, and say what to mend.",
    "demo": "Bring up a lab of two nodes and show what Penstock does.",
    "diff": "What a change of manifests would do to kernel and Envoy.",
    "down": "Remove everything that a daemon put on this node.",
    "endpoint": "Local workloads, as the kernel knows them.",
    "explain": "Why something is allowed or denied, and which line decides.",
    "fqdn": "Names that policies allow, as workloads learned them from DNS.",
    "get": "Show objects with their status.",
    "identity": "Identities: numbers, labels, workloads, addresses.",
    "lab": "Nodes and workloads out of network namespaces.",
    "metrics": "What the daemon counts, in Prometheus' text format.",
    "observe": "Show flows and requests.",
    "policy": "Policies: whom they select, and what they say about a workload.",
    "run": "The daemon, in the foreground, for this network namespace.",
    "service": "Services that the kernel translates or steers, with their backends.",
    "status": "What is in force, and what is not yet.",
    "validate": "Check manifests without a daemon.",
    "xds": "Who speaks xDS with the daemon, and what each has acknowledged.",
}
"""Command → its line in --help. The module penstock.cli.COMMAND has a click command of that name."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"penstock.cli.{cmd_name}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"penstock {version('penstock')}")
        ctx.exit()


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Show the version.",
)
def cli() -> None:
    """A service mesh for one Linux node: eBPF steers only what an L7 rule names into one Envoy."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    try:
        result: Any = cli.main(list(argv), prog_name="penstock", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except PenstockError as error:
        click.echo(f"penstock: {error}", err=True)
        if error.hint:
            click.echo(f"  {error.hint}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader went away (`| head`) before all was flushed; Python would complain once more at exit.
        # 1 is what click exits with where it notices this itself.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
