"""The ways from a client to a server that `bench latency` compares: all stand at once, one is loaded.

Every lab is of the same make, every server the same nginx, every client the same wrk. Each arm is used once
before anything is measured, and what did the work is looked at: an arm that does not go the way that its
name says ends the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.bench import cpu, sidecar
from penstock.bench.errors import BenchError
from penstock.bench.serving import HTTP2_PORT, HTTP_PORT, nginx, wrk_whole
from penstock.bench.site import NODES, OTHER_NODE, Site, allow, daemon, policy, site, workload

_WARM_CONNECTIONS = 32
_BUSY = 0.05
"""Seconds of processor time by which a process has taken part in a second of load."""

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Way:
    """`proxies` are the Envoys that a request passes, `others` those that must not see it (pids).

    `receivers` take the access logs: daemons, or what stands for one.
    """

    site: Site
    client: str
    server: str
    proxies: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    receivers: tuple[int, ...] = ()


ARMS: Mapping[str, str] = {
    "none": "no mesh",
    "self": "no mesh, again",
    "programs": "Penstock, L4 rule: no proxy",
    "node": "Penstock, HTTP rule: the node's Envoy",
    "none-remote": "no mesh, two nodes",
    "node-remote": "Penstock, two nodes: each node's Envoy",
    "node-remote-mtls": "Penstock, two nodes, mTLS",
    "sidecar": "two sidecars",
    "sidecar-mtls": "two sidecars, mTLS",
}


ON_ONE_NODE = ("none", "node", "sidecar", "sidecar-mtls")
"""The arms of the question that is asked most."""


@contextmanager
def ways(directory: Path, tell: Tell, arms: Sequence[str] = tuple(ARMS)) -> Iterator[dict[str, Way]]:
    """These arms, ready and tried. Raises PenstockError."""
    with ExitStack() as stack:
        tell("labs without a mesh")
        found = _without_mesh(stack, directory)
        tell("a node with its daemon")
        found |= _one_node(stack, directory)
        if any(arm.startswith("node-remote") for arm in arms):
            tell("two nodes with their daemons")
            found |= _two_nodes(stack, directory)
        tell("sidecars")
        found |= sidecars(stack, directory)
        for arm in arms:
            _try(arm, found[arm])
        yield {arm: found[arm] for arm in arms}


def web_server(directory: Path, lab: str, name: str, **more: Any) -> dict[str, Any]:
    """An nginx as a workload of the lab `lab`."""
    ports = [{"name": "http", "containerPort": HTTP_PORT}, {"name": "http2", "containerPort": HTTP2_PORT}]
    return workload(
        name, run=[nginx(directory, f"{lab}-{name}")], ports=ports, serviceAccountName=name, **more
    )


def _client(name: str = "client") -> dict[str, Any]:
    return workload(name, serviceAccountName=name)


def _without_mesh(stack: ExitStack, directory: Path) -> dict[str, Way]:
    members = [
        _client(),
        web_server(directory, "bare", "server"),
        web_server(directory, "bare", "far", node=OTHER_NODE),
    ]
    place = stack.enter_context(site("bare", members, directory, nodes=2, routes=True))
    near = Way(place, "client", "server")
    return {"none": near, "self": near, "none-remote": Way(place, "client", "far")}


_RULE = {"method": "GET|POST", "path": "/.*"}
_PORTS = ((HTTP_PORT, "TCP"), (HTTP2_PORT, "TCP"))


def http_rule(server: str, client: str = "client") -> dict[str, Any]:
    """A policy that lets `client` come to `server` with what every arm asks, as HTTP."""
    return policy(server, server, ingress=[allow(client, *_PORTS, http=[_RULE])])


def _one_node(stack: ExitStack, directory: Path) -> dict[str, Way]:
    members = [_client(), *(web_server(directory, "mesh", name) for name in ("http", "plain"))]
    place = stack.enter_context(site("mesh", members, directory))
    rules = [http_rule("http"), policy("plain", "plain", ingress=[allow("client", *_PORTS)])]
    running = stack.enter_context(daemon(place, rules))
    envoy = (running.envoy_pid(),)
    return {
        "node": Way(place, "client", "http", proxies=envoy, receivers=(running.pid,)),
        "programs": Way(place, "client", "plain", others=envoy, receivers=(running.pid,)),
    }


def _two_nodes(stack: ExitStack, directory: Path) -> dict[str, Way]:
    members = [_client(), *(web_server(directory, "far", name, node=OTHER_NODE) for name in ("open", "tls"))]
    place = stack.enter_context(site("far", members, directory, nodes=2))
    ports = [{"port": str(port), "protocol": protocol} for port, protocol in _PORTS]
    to = [
        {
            "toEndpoints": [{"matchLabels": {"app": name}}],
            "toPorts": [{"ports": ports, "rules": {"http": [_RULE]}}],
        }
        for name in ("open", "tls")
    ]
    plain = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": {"name": "open"},
        "spec": {"selector": {"matchLabels": {"app": "open"}}, "mtls": {"mode": "DISABLE"}},
    }
    rules = [http_rule("open"), http_rule("tls"), policy("client", "client", egress=to), plain]
    running = [
        stack.enter_context(daemon(place, rules, node=node, ca_dir=directory / "far-ca")) for node in NODES
    ]
    envoys, daemons = tuple(each.envoy_pid() for each in running), tuple(each.pid for each in running)
    return {
        arm: Way(place, "client", server, proxies=envoys, receivers=daemons)
        for arm, server in (("node-remote", "open"), ("node-remote-mtls", "tls"))
    }


def sidecars(stack: ExitStack, directory: Path) -> dict[str, Way]:
    """Two pairs of workloads with an Envoy beside each, until `stack` is closed."""
    arms = {"sidecar": ("client", "server"), "sidecar-mtls": ("tls-client", "tls-server")}
    members = [
        each
        for client, server in arms.values()
        for each in (_client(client), web_server(directory, "sidecar", server))
    ]
    place = stack.enter_context(site("sidecar", members, directory))
    log, receiver = stack.enter_context(sidecar.log_receiver(directory))
    certificates = sidecar.identities(directory, arms["sidecar-mtls"])
    found = {}
    for arm, pair in arms.items():
        proxies = []
        for own, peer in (pair, pair[::-1]):
            identity = certificates.get(own)
            config = sidecar.bootstrap(
                place.address(own), place.address(peer), log,
                identity=identity, peer_id=certificates[peer].spiffe_id if identity else "",
            )  # fmt: skip
            proxies.append(stack.enter_context(sidecar.beside(place, own, config)))
        found[arm] = Way(place, *pair, proxies=tuple(proxies), receivers=(receiver,))
    return found


def _try(arm: str, way: Way) -> None:
    watched = {pid: cpu.processes([pid]) for pid in way.proxies + way.others}
    run = wrk_whole(way.site, way.client, way.server, connections=_WARM_CONNECTIONS, seconds=1)
    if run.errors:
        raise BenchError(f"{arm}: {run.errors} of {run.requests} requests failed")
    busy = {pid for pid, before in watched.items() if cpu.processes([pid]) - before > _BUSY}
    if busy != set(way.proxies):
        raise BenchError(f"{arm}: requests do not go the way that is to be measured")
