"""`penstock bench`: what Penstock costs and how fast it is, measured on this machine."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any

import click

from penstock.cli.output import table
from penstock.errors import UsageError

BENCHES = (
    "compile",
    "attach",
    "policy",
    "l4",
    "l4-bridge",
    "scale",
    "memory",
    "latency",
    "latency-protocols",
    "latency-rate",
    "neighbour",
    "memory-sidecars",
    "routes",
    "disruption",
    "endpoints",
    "classes",
    "streams",
    "rotation",
    "issue",
    "handshake",
    "dns",
    "docker",
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--quick", is_flag=True, help="Fewer and shorter measurements: for a first look."),
            click.option(
                "--results",
                type=click.Path(file_okay=False, path_type=Path),
                default=Path("bench-results"),
                show_default=True,
                help="Where the figures as measured are kept, a file for each run.",
            ),
            click.option(
                "-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True
            ),
        )
    ):
        command = option(command)
    return command


def _how_long(command: Callable[..., Any]) -> Callable[..., Any]:
    rounds = click.option("--rounds", type=click.IntRange(1), help="How often each is measured.")
    seconds = click.option("--seconds", type=click.FloatRange(1), help="How long each time.")
    return rounds(seconds(command))


@click.group()
def bench() -> None:
    """Measure on this machine, in labs of its own; progress goes to stderr.

    A bar that is missed is shown and does not fail the command: figures are only worth what the machine was
    free to give.
    """


@bench.command(name="policy")
@_options
def policy(**options: Any) -> None:
    """Time from a manifest's change on disk to the new verdict, in the kernel and in Envoy."""
    _run(["policy"], **options)


@bench.command(name="attach")
@_options
def attach(**options: Any) -> None:
    """Time from a workload's namespace appearing to its traffic being judged and steered as its own."""
    _run(["attach"], **options)


@bench.command(name="compile")
@_options
def compile_(**options: Any) -> None:
    """Time to compile 10,000 workloads and 1,000 policies, and one changed label of these."""
    _run(["compile"], **options)


@bench.command(name="l4")
@_options
@_how_long
def l4(**options: Any) -> None:
    """Throughput and latency of L4-only traffic, against the same lab without any program."""
    _run(["l4"], **options)


@bench.command(name="scale")
@_options
@click.option("--sizes", default="", metavar="N,N", help="How many rules and Services, the fewest first.")
@_how_long
def scale(sizes: str, **options: Any) -> None:
    """What 10, 1,000 and 10,000 rules and Services cost a connection, beside the same in iptables."""
    try:
        wanted = [int(each) for each in sizes.split(",") if each]
    except ValueError:
        raise UsageError(f"--sizes {sizes}: not numbers", hint="such as --sizes 10,10000") from None
    _run(["scale"], **options, sizes=wanted)


@bench.command(name="l4-bridge")
@_options
@_how_long
def l4_bridge(**options: Any) -> None:
    """The same as l4 between neighbours on a bridge."""
    _run(["l4-bridge"], **options)


@bench.command(name="memory")
@_options
def memory(**options: Any) -> None:
    """Resident memory of the daemon and of Envoy with 50 workloads."""
    _run(["memory"], **options)


@bench.command(name="latency")
@_options
def latency(**options: Any) -> None:
    """Latency, throughput and processor time: no mesh, the node's Envoy, two nodes, sidecars."""
    _run(["latency"], **options)


@bench.command(name="latency-protocols")
@_options
def latency_protocols(**options: Any) -> None:
    """The same under HTTP/2, gRPC, and with a connection for each request."""
    _run(["latency-protocols"], **options)


@bench.command(name="latency-rate")
@_options
def latency_rate(**options: Any) -> None:
    """Latency at given rates (open loop), up to where each arm is saturated."""
    _run(["latency-rate"], **options)


@bench.command(name="neighbour")
@_options
def neighbour(**options: Any) -> None:
    """What one workload's flood does to another's latency, with and without limits."""
    _run(["neighbour"], **options)


@bench.command(name="memory-sidecars")
@_options
def memory_sidecars(**options: Any) -> None:
    """Memory of one Envoy and the daemon for 30 workloads, against 30 sidecars."""
    _run(["memory-sidecars"], **options)


@bench.command(name="routes")
@_options
def routes(**options: Any) -> None:
    """Time from a new HTTPRoute on disk to its first answer, with 3,000 routes loaded."""
    _run(["routes"], **options)


@bench.command(name="disruption")
@_options
def disruption(**options: Any) -> None:
    """Requests that fail while routes, backends, certificates, policies and the daemon change."""
    _run(["disruption"], **options)


@bench.command(name="rotation")
@_options
def rotation(**options: Any) -> None:
    """Every certificate and the root replaced under load: requests that fail, connections that end."""
    _run(["rotation"], **options)


@bench.command(name="issue")
@_options
def issue(**options: Any) -> None:
    """How many leaves one CA process issues in a second, and where the time goes."""
    _run(["issue"], **options)


@bench.command(name="handshake")
@_options
def handshake(**options: Any) -> None:
    """New mutual TLS connections a second, and what they add beside plain text."""
    _run(["handshake"], **options)


@bench.command(name="dns")
@_options
def dns(**options: Any) -> None:
    """Time of a DNS answer, past the DNS proxy and through it."""
    _run(["dns"], **options)


@bench.command(name="docker")
@_options
def docker(**options: Any) -> None:
    """Docker: compose up to the first request, a hundred containers, how soon they are followed."""
    _run(["docker"], **options)


@bench.command(name="endpoints")
@_options
def endpoints(**options: Any) -> None:
    """1,000 Services of 10 endpoints each, from cold to warm in Envoy, and one endpoint changed."""
    _run(["endpoints"], **options)


@bench.command(name="classes")
@_options
def classes(**options: Any) -> None:
    """Envoy's memory, and one more route, with 50 source classes and 200 Services with routes."""
    _run(["classes"], **options)


@bench.command(name="streams")
@_options
def streams(**options: Any) -> None:
    """A change to 100 xDS streams of 1,000 resources each, and what a stream costs."""
    _run(["streams"], **options)


@bench.command(name="all")
@_options
def all_(**options: Any) -> None:
    """All of them, one after the other."""
    _run(BENCHES, **options)


def _run(names: tuple[str, ...] | list[str], quick: bool, results: Path, output: str, **more: Any) -> None:
    from penstock.bench.record import save

    # What was set up is taken down on the way out, also when somebody ends the command.
    signal.signal(signal.SIGTERM, _end)
    found = []
    for name in names:
        module = import_module(f"penstock.bench.{name.replace('-', '_')}")
        data = module.run(_teller(name), quick=quick, **more).data()
        kept = save(data, results)
        if hasattr(module, "reports"):
            for suffix, text in module.reports(data).items():
                kept.with_suffix(suffix).write_text(text)
        click.echo(f"{name}: kept as {kept}", err=True)
        found.append(data)
        if output == "table":
            _show(module, data)
    if output == "json":
        click.echo(json.dumps(found[0] if len(found) == 1 else found, indent=2))


def _teller(name: str) -> Callable[[str], None]:
    return lambda text: click.echo(f"{name}: {text}", err=True)


def _show(module: Any, data: dict[str, Any]) -> None:
    machine = data["machine"]
    click.echo(f"\n{data['bench']}: {data['method']}")
    load = f"load {machine['load'][0]:.1f}"
    click.echo(f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, {load}\n")
    table(module.COLUMNS, module.rows(data))
    click.echo()
    for bar in data["bars"]:
        sign = ">=" if bar["above"] else "<"
        word, colour = ("held", "green") if bar["held"] else ("MISSED", "red")
        verdict = (
            click.style(word, fg=colour) if bar["clear"] else click.style("too noisy to tell", fg="yellow")
        )
        click.echo(
            f"{verdict}  {bar['name']}: {bar['value']:g} {bar['unit']}".rstrip()
            + f" (bar {sign} {bar['limit']:g})"
        )


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
