"""`penstock run`: the daemon in the foreground."""

from __future__ import annotations

import platform
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from penstock.cli.options import DURATION, passphrase_option, run_dir_option
from penstock.dns.model import OWN_ADDRESSES
from penstock.errors import UsageError

if TYPE_CHECKING:
    from penstock.world import Address, Between, Enforcement

DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.option(
    "--config", type=DIRECTORY, required=True, help="Folder of manifests, read recursively and watched."
)
@run_dir_option
@click.option(
    "--state-dir",
    type=DIRECTORY,
    default=Path("/var/lib/penstock"),
    show_default=True,
    help="What must survive a restart of the machine: numbers given out, certificates, the CA.",
)
@click.option("--node", default=None, help="This node's name.  [default: the host's name]")
@click.option(
    "--ca-dir", type=DIRECTORY, default=None, help="Share one CA with other daemons of this machine."
)
@passphrase_option
@click.option(
    "--ca-server", metavar="HOST:PORT", default=None, help="Take certificates from `penstock ca serve` there."
)
@click.option(
    "--join-token-file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="By which this node joins that CA, if it has not: see `penstock ca token`.",
)
@click.option(
    "--trust-domain", default="penstock.local", show_default=True, help="Trust domain of the SPIFFE ids."
)
@click.option(
    "--cert-lifetime",
    type=DURATION,
    default="24h",
    show_default=True,
    help="How long a workload's certificate holds; renewed at half of it.",
)
@click.option(
    "--host-access/--no-host-access",
    default=True,
    show_default=True,
    help="The node's own processes may reach its workloads whatever the policy (health checks).",
)
@click.option(
    "--policy-enforcement",
    type=click.Choice(["default", "always", "never"]),
    default="default",
    show_default=True,
    help="Closed to what no rule allows: whom a policy selects, every workload, or nobody (no policy holds).",
)
@click.option(
    "--between-nodes",
    type=click.Choice(["auto", "direct", "vxlan"]),
    default="auto",
    show_default=True,
    help="How the ranges of other nodes are reached: by routes via the node, in vxlan (UDP 7444), or by "
    "routes where the node is on a link of this one and else in vxlan.",
)
@click.option(
    "--metrics", metavar="ADDRESS:PORT", default="", help="Serve metrics at http://ADDRESS:PORT/metrics."
)
@click.option(
    "--xds",
    metavar="ADDRESS:PORT",
    default="",
    help="Serve Services to gRPC programs over TCP too: only to certificates of the mesh.",
)
@click.option(
    "--concurrency", type=click.IntRange(1), default=None, help="Envoy's workers.  [default: one per CPU]"
)
@click.option(
    "--proxy-rate",
    type=click.IntRange(0, 1_000_000_000),
    default=0,
    show_default="no limit",
    metavar="PACKETS",
    help="What each workload may ask of the shared proxy: packets a second that open a connection or carry "
    "data, about one for a small request. More is dropped (PROXY_OVERUSED), and its sender slows down.",
)
@click.option(
    "--docker",
    is_flag=False,
    flag_value="/var/run/docker.sock",
    default=None,
    envvar="PENSTOCK_DOCKER",
    metavar="[SOCKET]",
    help="Follow a Docker Engine: its containers become workloads.  [without SOCKET: /var/run/docker.sock]",
)
@click.option(
    "--dns-address",
    "dns_addresses",
    multiple=True,
    metavar="ADDRESS",
    default=OWN_ADDRESSES,
    show_default=True,
    help="Where workloads reach the node's own DNS, one of each family; `none`: nowhere.",
)
@click.option(
    "--dns-upstream",
    "dns_upstreams",
    multiple=True,
    metavar="ADDRESS",
    help="Whom the node's own DNS asks what it does not know.  [default: those of /etc/resolv.conf]",
)
@click.option(
    "--dns-min-ttl",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    metavar="SECONDS",
    help="How long an address that a workload learned counts at least (toFQDNs).",
)
@click.option(
    "--dns-grace",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long it goes on to count after its time; with a connection to it longer.",
)
@click.option(
    "--dns-idle",
    type=click.FloatRange(0),
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the DNS proxy stays without a question while no rule needs it.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
)
def run(
    config: Path,
    run_dir: Path,
    state_dir: Path,
    node: str | None,
    ca_dir: Path | None,
    ca_passphrase_file: Path | None,
    ca_server: str | None,
    join_token_file: Path | None,
    trust_domain: str,
    cert_lifetime: timedelta,
    host_access: bool,
    policy_enforcement: Enforcement,
    between_nodes: Between,
    metrics: str,
    xds: str,
    concurrency: int | None,
    proxy_rate: int,
    docker: str | None,
    dns_addresses: tuple[str, ...],
    dns_upstreams: tuple[str, ...],
    dns_min_ttl: int,
    dns_grace: float,
    dns_idle: float,
    log_level: str,
) -> None:
    """Run the daemon in the foreground, for the network namespace that it is started in.

    SIGTERM ends it and leaves the datapath and Envoy up; `penstock down` removes them.
    """
    import uvloop

    from penstock.daemon import Daemon
    from penstock.mtls.spiffe import check_trust_domain
    from penstock.node import Options
    from penstock.observe.logs import set_up
    from penstock.world import Settings

    if ca_server and ca_dir:
        raise UsageError("--ca-server and --ca-dir exclude each other")
    if join_token_file and not ca_server:
        raise UsageError("--join-token-file needs --ca-server")
    set_up(log_level)
    options = Options(
        config=config,
        run_dir=run_dir.resolve(),
        state_dir=state_dir.resolve(),
        node=node or platform.node(),
        ca_dir=ca_dir.resolve() if ca_dir else None,
        ca_passphrase_file=ca_passphrase_file,
        ca_server=ca_server or "",
        join_token_file=join_token_file,
        settings=Settings(
            trust_domain=check_trust_domain(trust_domain),
            host_access=host_access,
            policy_enforcement=policy_enforcement,
            dns_addresses=_addresses(dns_addresses, "--dns-address"),
            between_nodes=between_nodes,
            proxy_rate=proxy_rate,
        ),
        metrics=metrics,
        xds=xds,
        concurrency=concurrency,
        cert_lifetime=cert_lifetime,
        docker=docker,
        dns_upstreams=tuple(map(str, _addresses(dns_upstreams, "--dns-upstream"))),
        dns_min_ttl=dns_min_ttl,
        dns_grace=dns_grace,
        dns_idle=dns_idle,
    )

    async def main() -> None:
        daemon = await Daemon.open(options)
        await daemon.run()

    uvloop.run(main())


def _addresses(words: tuple[str, ...], option: str) -> tuple[Address, ...]:
    if words == ("none",):
        return ()
    try:
        return tuple(ip_address(word) for word in words)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
