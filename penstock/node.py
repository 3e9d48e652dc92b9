"""What one node's daemon holds: opened in order, let go in order, and taken down for good by `teardown`.

`close` leaves the datapath, the host's settings and Envoy as they are: the next daemon adopts them.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from penstock import rundir, state
from penstock.apply import Applier
from penstock.blocks import Blocks
from penstock.certs import Certificates
from penstock.dns.place import Choice
from penstock.dns.process import DnsProxy
from penstock.dns.resolvers import resolvers
from penstock.envoy.bootstrap import clients_socket, xds_socket
from penstock.envoy.process import UID, EnvoyProcess
from penstock.errors import UsageError
from penstock.kernel import Kernel
from penstock.mtls import keys
from penstock.mtls.authority import Authority, Reporting
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.issuer import LIFETIME, Issuer
from penstock.mtls.remote import RemoteAuthority
from penstock.mtls.reports import Reporter
from penstock.redirect.blocklist import Blocklist
from penstock.redirect.datapath import Datapath
from penstock.redirect.host import HostSettings
from penstock.redirect.libbpf import RingBuffer, open_pin
from penstock.redirect.looked_at import LookedAtTable
from penstock.redirect.pressure import Pressure
from penstock.redirect.tables import Tables
from penstock.workload_api.answers import Held
from penstock.workload_api.server import WorkloadAPI
from penstock.world import Allocations, Settings
from penstock.xds.limits import STRANGERS
from penstock.xds.server import XdsServer
from penstock.xds.tcp import TcpAccess

Blocking = Callable[..., Awaitable[Any]]
"""Runs a call on the one thread that owns netlink and the disk: ``await blocking(function, *arguments)``."""


@dataclass(frozen=True, slots=True)
class Options:
    """What `penstock run` was asked for. `ca_dir` None keeps the CA in the state directory, `docker` is the
    socket of an engine to follow."""

    config: Path
    run_dir: Path
    state_dir: Path
    node: str
    ca_dir: Path | None = None
    ca_passphrase_file: Path | None = None
    ca_server: str = ""
    """HOST:PORT of a CA that is served elsewhere; then `ca_dir` is not used."""
    join_token_file: Path | None = None
    xds: str = ""
    """ADDRESS:PORT at which gRPC programs get Services over mutual TLS, besides the socket."""
    metrics: str = ""
    """ADDRESS:PORT to serve metrics at."""
    settings: Settings = field(default_factory=Settings)
    concurrency: int | None = None
    cert_lifetime: timedelta = LIFETIME
    docker: str | None = None
    dns_upstreams: tuple[str, ...] = ()
    """Whom the node's own DNS asks; none: those of /etc/resolv.conf."""
    dns_min_ttl: int = 0
    """Seconds that a learned address counts at least."""
    dns_grace: float = 60.0
    """Seconds that it goes on to count after its time."""
    dns_idle: float = 600.0
    """Seconds without a question after which a DNS proxy that no rule needs ends."""


@dataclass(frozen=True, slots=True)
class Node:
    """Everything that is open. `cookie` is the network namespace's own."""

    lock: int
    host: HostSettings
    datapath: Datapath
    blocks: Blocks
    tables: Tables
    pressure: Pressure
    server: XdsServer
    clients: XdsServer
    held: Held
    workload_api: WorkloadAPI
    envoy: EnvoyProcess
    ca: Authority
    issuer: Issuer
    certificates: Certificates
    reporter: Reporting
    applier: Applier
    events: RingBuffer
    dns: DnsProxy
    allocations: Allocations
    cookie: int

    async def close(self, blocking: Blocking) -> None:
        await self.server.stop()
        await self.clients.stop()
        await self.workload_api.stop()
        self.events.close()
        self.applier.kernel.looked_at.close()
        self.tables.close()
        self.pressure.close()
        self.blocks.close()
        self.datapath.close()
        await blocking(self.host.close)
        self.reporter.close()
        os.close(self.lock)


async def open_node(
    options: Options,
    blocking: Blocking,
    *,
    on_event: Callable[[bytes], None],
    on_question: Callable[[dict[str, Any]], None] = lambda _: None,
    services: Sequence[grpc.GenericRpcHandler],
) -> Node:
    """Open or adopt all that the node needs. Raises PenstockError if it cannot carry us.

    `on_event` gets the samples of the kernel's ring buffer, `on_question` what the DNS proxy answered;
    `services` are served beside xDS, to Envoy.
    """
    for directory in (options.run_dir, options.state_dir):
        directory.mkdir(parents=True, exist_ok=True)
    # Envoy's user passes through to its own folder and to the xDS socket, and sees nothing else.
    options.run_dir.chmod(0o711)
    lock = rundir.lock(options.run_dir)
    settings = options.settings
    ca_dir = options.ca_dir or options.state_dir / "ca"
    ca, reporter = await blocking(_authority, options, ca_dir)
    allocations = await blocking(state.load, options.state_dir)
    host: HostSettings = await blocking(
        HostSettings, rundir.host_record(options.run_dir), settings.between_nodes
    )
    await blocking(host.up, settings.proxy_source_ports)
    datapath = Datapath(rundir.pins(options.run_dir))
    blocks = Blocks(Blocklist(options.state_dir, datapath.pins), datapath)
    tables = Tables(
        datapath.pins,
        settings.proxy_source_ports,
        host_access=settings.host_access,
        proxy_rate=settings.proxy_rate,
    )
    datapath.attach_cgroup()
    datapath.attach_namespace()
    socket = xds_socket(options.run_dir)
    socket.unlink(missing_ok=True)
    users = frozenset({0, os.getuid(), UID})
    server = XdsServer(socket, services=services, group=UID, users=users, awaits=options.node)
    held = Held(settings.trust_domain)
    if options.xds and not isinstance(ca, CertificateAuthority):
        raise UsageError("--xds needs a CA of this machine: with --ca-server nobody vouches for the server")
    tcp = (
        TcpAccess(options.xds, ca, options.node)
        if isinstance(ca, CertificateAuthority) and options.xds
        else None
    )
    clients = XdsServer(clients_socket(options.run_dir), tcp=tcp, limits=STRANGERS)
    clients_socket(options.run_dir).unlink(missing_ok=True)
    envoy = EnvoyProcess(options.run_dir, node=options.node, concurrency=options.concurrency)
    issuer = Issuer(ca, lifetime=options.cert_lifetime, directory=options.state_dir / "svids")
    dns = DnsProxy(
        options.run_dir,
        Choice(
            options.dns_upstreams or resolvers(),
            options.dns_min_ttl,
            options.dns_grace,
            settings.proxy_source_ports,
        ),
        idle=options.dns_idle,
        tell=on_question,
    )
    applier = Applier(
        settings=settings,
        kernel=Kernel(
            datapath,
            tables,
            host,
            looked_at=LookedAtTable(datapath.pins),
            source_ports=settings.proxy_source_ports,
            blocking=blocking,
        ),
        server=server,
        admin=envoy.admin,
        issuer=issuer,
        trusted=lambda: (ca.bundle_pem, ca.lists_pem),
        blocking=blocking,
        dns=dns,
    )
    certificates = Certificates(
        options.node,
        ca=ca,
        issuer=issuer,
        applier=applier,
        server=server,
        reporter=reporter,
        blocking=blocking,
        enforced=options.state_dir / "revoked.json",
    )
    events = RingBuffer(open_pin(datapath.pins / "events"), on_event)
    cookie = int(await blocking(host.cookie))
    return Node(
        lock=lock,
        host=host,
        datapath=datapath,
        blocks=blocks,
        tables=tables,
        pressure=Pressure(datapath.pins),
        server=server,
        clients=clients,
        held=held,
        workload_api=WorkloadAPI(
            *rundir.workload_sockets(options.run_dir),
            held,
            lambda spiffe_id, audience, owner: blocking(
                partial(ca.sign_jwt, spiffe_id, audience, owner=owner)
            ),
        ),
        envoy=envoy,
        ca=ca,
        issuer=issuer,
        certificates=certificates,
        reporter=reporter,
        applier=applier,
        events=events,
        dns=dns,
        allocations=allocations,
        cookie=cookie,
    )


def _authority(options: Options, ca_dir: Path) -> tuple[Authority, Reporting]:
    """The CA, and whom to tell how far this node is. Raises PenstockError."""
    domain = options.settings.trust_domain
    if options.ca_server:
        folder = options.state_dir / "ca-client"
        remote = RemoteAuthority.open(
            options.ca_server, options.node, folder, domain, options.join_token_file
        )
        return remote, remote
    # Known to the CA's rotations before it is read: none can begin and end without this node.
    reporter = Reporter.open(ca_dir, options.node)
    passphrase = keys.passphrase(options.ca_passphrase_file)
    return CertificateAuthority.open(ca_dir, domain, passphrase=passphrase), reporter
