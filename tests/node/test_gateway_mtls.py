"""TLS from outside with a client's certificate, mutual TLS inside: a Gateway before another node."""

from __future__ import annotations

import http.client
import ssl
from typing import Any

import pytest
from clients import Answer, Sniffer, until
from conftest import MeshFactory
from objects import gateway, http_route, listener, peer_authentication, policy, ports, select, service, to
from rig import Mesh, workload
from test_gateway_tls import FRIEND, STRANGER, A, Pair, Tls, https, validation

GATEWAY = "spiffe://penstock.local/ns/penstock/sa/ingress"
FAR = "spiffe://penstock.local/ns/default/sa/far"
SECRET = "/nobody-is-to-read-this"


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    made = make_mesh(workload("client", "node-a"), workload("far", "node-b", serves=True))
    apply(made)
    return made


def apply(mesh: Mesh, *more: dict[str, Any], mode: str = "STRICT") -> None:
    mesh.apply(*documents(*more, mode=mode))
    served(mesh, "/")


def served(mesh: Mesh, path: str) -> None:
    """Asked for until it is: each worker of the Gateway's Envoy may have a connection in its pool that ends
    with the change, and finds that out by a request.
    """
    until(f"{path} is served", lambda: ask(mesh, FRIEND, path).status == 200)


def documents(*more: dict[str, Any], mode: str = "STRICT") -> tuple[dict[str, Any], ...]:
    return (
        service("far", {"port": 80, "targetPort": 8080}, selector={"app": "far"}),
        peer_authentication("far", mode, app="far"),
        A.secret("a"),
        FRIEND.authorities("friends"),
        gateway(
            "gw",
            listener(),
            https("a.example.org", "a"),
            tls={"frontend": {"default": validation("friends")}},
        ),
        http_route("r", "gw", {"backendRefs": [to("far")]}),
        *more,
    )


ONLY_GATEWAYS = policy(
    "far",
    select(app="far"),
    ingress=[{"fromEntities": ["ingress"], "toPorts": [ports(8080, http=[{"path": "/.*"}])]}],
)


def ask(mesh: Mesh, mine: Pair | None, path: str) -> Answer:
    with Tls(mesh, "a.example.org", A, mine) as connection:
        return connection.ask("a.example.org", path)


def told(mesh: Mesh, node: str, path: str) -> dict[str, Any]:
    """What a node's Envoy told of the request, once it has."""

    def found() -> list[dict[str, Any]]:
        return [r for r in mesh.on(node).observed(4096) if r.get("path") == path]

    return until(f"the Envoy of {node}'s node tells of {path}", found)[-1]


def test_where_nobody_reads_the_request_only_the_sender_tells_of_it(mesh: Mesh) -> None:
    """Without an L7 rule at the receiver its Envoy carries TCP: there is no request to tell of.

    This is the first test: a connection that such a rule once named is read to its end, also without it.
    """
    apply(mesh)
    served(mesh, f"{SECRET}/tcp")
    assert told(mesh, "client", f"{SECRET}/tcp")["upstream_peer_ids"] == [FAR]
    assert not [r for r in mesh.on("far").observed(4096) if r.get("path") == f"{SECRET}/tcp"]


def test_it_is_tls_on_every_leg_and_each_end_is_proven(mesh: Mesh) -> None:
    """The receiving Envoy reads the request for an L7 rule: both of them tell of it, with who was proven."""
    apply(mesh, ONLY_GATEWAYS)
    with Sniffer(mesh["client"].netns, "eth0") as outside, Sniffer(mesh.spec.underlay_netns, "port0") as wire:
        served(mesh, f"{SECRET}/l7")
    for leg in (outside, wire):
        assert leg.segments
        assert not leg.carried(SECRET.encode())
    sent, received = told(mesh, "client", f"{SECRET}/l7"), told(mesh, "far", f"{SECRET}/l7")
    assert sent["upstream_peer_ids"] == [FAR]
    assert (received["peer_ids"], received["local_ids"]) == ([GATEWAY], [FAR])
    assert received["verdict"] == "SERVED"


@pytest.mark.parametrize("mine", [None, STRANGER], ids=["none", "a stranger's"])
def test_without_the_right_certificate_nothing_goes_inside(mesh: Mesh, mine: Pair | None) -> None:
    apply(mesh, ONLY_GATEWAYS)
    path = f"{SECRET}/{mine is None}"
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.HTTPException)):
        ask(mesh, mine, path)
    served(mesh, f"{path}/after")
    told(mesh, "far", f"{path}/after")
    assert not [
        r for node in ("client", "far") for r in mesh.on(node).observed(4096) if r.get("path") == path
    ]


def test_the_receiver_takes_nothing_but_mutual_tls(mesh: Mesh) -> None:
    """Permissive or strict makes no difference to what a Gateway sends; off is plain text."""
    for mode, plain in (("PERMISSIVE", False), ("DISABLE", True), ("STRICT", False)):
        apply(mesh, ONLY_GATEWAYS, mode=mode)
        path = f"{SECRET}/{mode}"
        with Sniffer(mesh.spec.underlay_netns, "port0") as wire:
            served(mesh, path)
        assert wire.carried(path.encode()) is plain, mode
        assert told(mesh, "far", path)["peer_ids"] == ([] if plain else [GATEWAY])
