"""`penstock explain`: the decisions on the way of a connection or a request, and the lines behind them."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from penstock.cli.options import run_dir_option
from penstock.errors import UsageError

EXIT = {"ALLOWED": 0, "DENIED": 1, "PARTLY": 1}
_WIDTH = 100


@click.command(short_help="Why a connection or a request is allowed or denied.")
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST[:PORT[/PROTO]]")
@click.argument("method", required=False)
@click.argument("path", required=False)
@click.option(
    "-H", "--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of the request."
)
@click.option(
    "--server-name",
    default=None,
    metavar="NAME",
    help="The SNI of TLS, by which a TLSRoute is chosen too; '' for none.",
)
@click.option(
    "-f",
    "--file",
    "paths",
    multiple=True,
    metavar="PATH",
    help="Offline: by these manifests (a file, or a directory that is read recursively), without a daemon.",
)
@click.option(
    "--node", default=None, help="Offline: as this node sees it (default: the node of SRC, or of DST)."
)
@run_dir_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def explain(
    source: str,
    destination: str,
    method: str | None,
    path: str | None,
    headers: tuple[str, ...],
    server_name: str | None,
    paths: tuple[str, ...],
    node: str | None,
    run_dir: Path,
    output: str,
) -> int:
    """Say what becomes of a connection from SRC to DST, or of a request METHOD PATH on it, and why.

    \b
    SRC and DST are
      web, shop/web       a workload (NAME, or NAMESPACE/NAME)
      shop/web:80         a Service, if it has that port; also web.shop.svc
      10.244.1.7, [::1]   an address: of a workload, of a Service, or of anybody
      gateway/NAME        a Gateway (gateway/NAMESPACE/NAME), by its address; ingress: the Ingresses'
      world, host         whoever is outside, and the node itself
      api.example.com:443 a name of DNS: the rules that mean it, and the addresses that are recorded for SRC
    PORT may be left out where there is only one; PROTO is TCP, UDP, SCTP or ICMP.

    Each decision is one line, in the order in which it is taken: source and identity, translation of a
    Service, the sender's egress and the receiver's ingress (the kernel's entry, and the policy with file and
    line), the listener, the route, and the rule that judges the request at each endpoint that may be chosen.
    Where nothing allows it, a manifest follows that would.

    Without -f the daemon is asked, and it reads the kernel's own maps. With -f only the manifests count:
    try a change before you save it.

    \b
    penstock explain shop orders:8080 GET /orders/1
    penstock explain shop/cart db.data.svc:5432 -f config/
    penstock explain world web:80 POST / -H 'Host: www.example.com' -o json
    penstock explain world gateway/edge:443 --server-name db.example.com -f config/

    Exit code 0 allowed, 1 denied (or not allowed at every endpoint), 2 bad usage, 3 no daemon.
    """
    from penstock.explain import Question, split

    if node and not paths:
        raise UsageError("--node is for -f: a daemon sees what its own node sees")
    if method is not None and path is None and method.startswith("/"):
        method, path = "GET", method
    who, port, protocol = split(destination)
    question = Question(
        source, who, port, protocol, method and method.upper(), path, _headers(headers), server_name
    )
    found = _offline(question, paths, node) if paths else _live(question, run_dir)
    if output == "json":
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        show(found)
    return EXIT[found["verdict"]]


def _headers(given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    found = []
    for text in given:
        name, colon, value = text.partition(":")
        if not colon or not name.strip():
            raise UsageError(f"{text!r} is not 'NAME: VALUE'")
        found.append((name.strip(), value.strip()))
    return tuple(found)


def _live(question: Any, run_dir: Path) -> dict[str, Any]:
    import msgspec

    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        return dict(client.call("explain", question=msgspec.to_builtins(question)))


def _offline(question: Any, paths: tuple[str, ...], node: str | None) -> dict[str, Any]:
    from penstock.cli.validate import describe, read_all
    from penstock.explain import Planned, offline, plain
    from penstock.explain import explain as explained
    from penstock.manifests.store import Store

    result = Store().apply(read_all(paths))
    for problem in result.problems:
        if problem.severity == "error":
            click.echo(f"left out: {describe(problem)}", err=True)
    documents = result.documents
    at = node or offline.node_of(documents, question.source, question.destination)
    facts, plan = offline.compiled(offline.world(documents, at))
    return plain(explained(question, facts, plan, Planned(plan.kernel)))


def show(found: dict[str, Any]) -> None:
    """For people: one line a decision, the verdict, and what would allow it."""
    how = "by the kernel's maps" if found["live"] else "by the manifests"
    click.echo(f"{found['source']} -> {found['destination']}, {how}")
    at = None
    several = len(found["endpoints"]) > 1
    for step in found["steps"]:
        if several and step["endpoint"] and step["endpoint"] != at:
            at = step["endpoint"]
            click.echo(f"  at {at}")
        mark = click.style("✓", fg="green") if step["ok"] else click.style("✗", fg="red")
        node = f"[{step['node']}] " if step["node"] else ""
        _wrapped(f"  {mark} {step['what']:12}", 16, f"{node}{step['text']}")
    _verdict(found)
    if found["hint"]:
        click.echo(found["hint"])
    if found["advice"]:
        click.echo("This would allow it:")
        click.echo(textwrap.indent(found["advice"], "  "), nl=False)


def _wrapped(head: str, width: int, text: str) -> None:
    """In lines on a terminal; whole for a program."""
    if not sys.stdout.isatty():
        click.echo(head + text)
        return
    lines = textwrap.wrap(text, _WIDTH, break_long_words=False, break_on_hyphens=False)
    click.echo(head + ("\n" + " " * width).join(lines))


def _verdict(found: dict[str, Any]) -> None:
    colour = "green" if found["verdict"] == "ALLOWED" else "red"
    code = f" {found['code']}" if found["code"] else ""
    verdict = click.style(found["verdict"], fg=colour, bold=True)
    click.echo(f"{verdict} {found['reason']}{code}: {found['why']}")
    if found["verdict"] == "PARTLY":
        good = [e["endpoint"] for e in found["endpoints"] if e["allowed"]]
        click.echo(f"allowed at {', '.join(good)}")
