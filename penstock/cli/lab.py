"""`penstock lab`: nodes and workloads out of network namespaces, closed off from the machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from penstock.cli.options import output_option
from penstock.cli.output import show
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.lab import LabSpec


@click.group(name="lab")
def lab() -> None:
    """Nodes and workloads out of network namespaces, for demo, tests and bench.

    A lab is closed: no route of it leaves the machine, and `down` leaves nothing of it.
    """


@lab.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--manifests",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the Node and Workload manifests of the lab to this directory.",
)
@click.option(
    "--wait",
    default=15.0,
    show_default=True,
    help="Seconds until what the workloads run must serve its ports.",
)
def up(file: Path, manifests: Path | None, wait: float) -> None:
    """Make the lab that FILE describes."""
    from penstock import lab as labs

    spec = labs.load(file)
    labs.up(spec, wait=wait)
    click.echo(f"lab {spec.name}: {len(spec.nodes)} nodes, {len(spec.workloads)} workloads")
    if manifests:
        click.echo(f"manifests in {labs.write_manifests(spec, manifests)}")


@lab.command(context_settings={"ignore_unknown_options": True})
@click.argument("member", metavar="WORKLOAD|NODE")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def exec(member: str, command: tuple[str, ...]) -> None:
    """Run a command in the namespace of a workload, a node, or the `underlay`.

    WORKLOAD is its name, or namespace/name; with several labs up, lab:name. The exit code is the command's.
    """
    from penstock.lab import netns

    path = _member(member)
    try:
        netns.replace_by(path, command)
    except (FileNotFoundError, PermissionError) as error:
        raise UsageError(f"{command[0]}: {error.strerror}") from None


@lab.command(name="list")
@output_option
def list_(output: str) -> None:
    """Show the labs that are up."""
    from penstock import lab as labs

    found = labs.list_labs()
    rows = [
        (spec.name, kind, name, node, " ".join(map(str, addresses)), netns)
        for spec in found
        for kind, name, node, addresses, netns in _members(spec)
    ]
    show(
        [_as_data(spec) for spec in found],
        output,
        columns=("LAB", "KIND", "NAME", "NODE", "ADDRESSES", "NETNS"),
        rows=rows,
    )


@lab.command()
@click.argument("lab_or_file", metavar="[NAME|FILE]", required=False)
@click.option("--all", "everything", is_flag=True, help="All labs on this machine.")
def down(lab_or_file: str | None, everything: bool) -> None:
    """Take a lab down: its processes end, its namespaces go. Without a name, the only one there is."""
    from penstock import lab as labs

    known = labs.names()
    if everything == bool(lab_or_file) and (everything or len(known) > 1):
        raise UsageError("say which lab, or --all", hint=f"there is {', '.join(known)}")
    if lab_or_file is None:
        chosen = known
    elif lab_or_file in known or not Path(lab_or_file).is_file():
        chosen = [lab_or_file]
    else:
        chosen = [labs.load(lab_or_file).name]
    for name in chosen:
        click.echo(f"lab {name} is down" if labs.down(name) else f"there is no lab {name}")


@lab.command()
@click.option("--name", required=True, help="Name of this backend; the answers give it as `pod`.")
@click.option("--namespace", default="default", show_default=True)
@click.option("--service", default="", help="Service that it is a backend of.")
@click.option(
    "--http",
    "http_ports",
    type=int,
    multiple=True,
    metavar="PORT",
    help="Answer HTTP/1.1, WebSocket and HTTP/2 (prior knowledge) with JSON.",
)
@click.option("--https", "https_ports", type=int, multiple=True, metavar="PORT", help="The same in TLS.")
@click.option("--tcp", "tcp_ports", type=int, multiple=True, metavar="PORT", help="Send back what comes.")
@click.option("--tls", "tls_ports", type=int, multiple=True, metavar="PORT", help="The same in TLS.")
@click.option("--grpc", "grpc_ports", type=int, multiple=True, metavar="PORT", help="Answer any unary call.")
@click.option("--udp", "udp_ports", type=int, multiple=True, metavar="PORT", help="Send back each datagram.")
@click.option("--hostname", "hostnames", multiple=True, help="Of its own certificate.  [default: localhost]")
@click.option("--certificate", default="", metavar="FILE", help="PEM, in place of one of its own.")
@click.option("--key", default="", metavar="FILE", help="PEM, if not in the certificate's file.")
@click.option("--client-ca", default="", metavar="FILE", help="PEM: clients must show a certificate of it.")
def echo(
    name: str,
    namespace: str,
    service: str,
    hostnames: tuple[str, ...],
    certificate: str,
    key: str,
    client_ca: str,
    **ports: tuple[int, ...],
) -> None:
    """A backend that tells what it received. Prints `ready` when it listens; ends on SIGTERM.

    Over HTTP, ?status=503 chooses the answer's status and ?delay=200 its delay in milliseconds. Over TCP and
    UDP, `who?` is answered with who it is.
    """
    from penstock.lab.echo import Backend, serve

    if not any(ports.values()):
        raise UsageError("nothing to serve", hint="give --http, --https, --grpc, --tcp, --tls or --udp")
    serve(
        Backend(
            name,
            namespace,
            service,
            hostnames=hostnames or ("localhost",),
            certificate=certificate,
            key=key,
            client_ca=client_ca,
            **{kind.removesuffix("_ports"): numbers for kind, numbers in ports.items()},
        )
    )


def _member(text: str) -> Path:
    """The namespace of ``name``, ``namespace/name`` or ``lab:name``: a workload, a node or the underlay."""
    from penstock import lab as labs

    wanted, colon, name = text.rpartition(":")
    specs = [spec for spec in labs.list_labs() if not colon or spec.name == wanted]
    if not specs:
        raise UsageError(
            f"there is no lab {wanted}" if colon else "there is no lab", hint="penstock lab list"
        )
    found: dict[str, Path] = {}
    for spec in specs:
        if name == "underlay":
            found[f"{spec.name}:underlay"] = spec.underlay_netns
        for node in spec.nodes:
            if node.name == name:
                found[f"{spec.name}:{name}"] = node.netns
        for workload in spec.workloads:
            full = f"{workload.namespace}/{workload.name}"
            if name in (workload.name, full):
                found[f"{spec.name}:{full}"] = workload.netns
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise UsageError(f"{text} is there more than once", hint=f"say which: {', '.join(found)}")
    raise UsageError(f"no workload or node {text}", hint="penstock lab list")


def _members(spec: LabSpec) -> list[tuple[str, str, str, tuple[Any, ...], Path]]:
    nodes = [("node", node.name, node.name, node.addresses, node.netns) for node in spec.nodes]
    return nodes + [
        ("workload", f"{w.namespace}/{w.name}", w.node, w.addresses, w.netns) for w in spec.workloads
    ]


def _as_data(spec: LabSpec) -> dict[str, Any]:
    keys = ("kind", "name", "node", "addresses", "netns")
    members = [
        dict(zip(keys, (kind, name, node, [str(a) for a in addresses], str(netns)), strict=True))
        for kind, name, node, addresses, netns in _members(spec)
    ]
    return {
        "name": spec.name,
        "underlay": [str(network) for network in spec.underlay],
        "nodes": [
            {k: v for k, v in m.items() if k not in ("kind", "node")} for m in members if m["kind"] == "node"
        ],
        "workloads": [
            {k: v for k, v in m.items() if k != "kind"} for m in members if m["kind"] == "workload"
        ],
    }
