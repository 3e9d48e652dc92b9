"""Who is one identity, who hangs on this node, who is in the mesh, and what mesh TLS each wants."""

from __future__ import annotations

import pytest
from worlds import identities, make, read, settle, workload

from penstock.plan import MeshMode
from penstock.policy.identities import Member
from penstock.policy.membership import members
from penstock.policy.mesh_tls import MeshModes
from penstock.world import World

NODES = """
apiVersion: v1
kind: Node
metadata: {name: node-b}
---
apiVersion: v1
kind: Node
metadata: {name: node-c, annotations: {penstock.dev/mesh: "false"}}
---"""


def _member(world: World, name: str) -> Member:
    return next(m for m in members(world).all if m.document.key.name == name)


def test_an_identity_is_namespace_account_and_labels() -> None:
    world, _ = make(
        workload("a", "10.1.0.1", labels="app: x")
        + workload("b", "10.1.0.2", labels="app: x")
        + workload("c", "10.1.0.3", labels="app: y")
        + workload("d", "10.1.0.4", labels="app: x", namespace="other")
        + workload("e", "10.1.0.5", labels="app: x", account="web")
    )
    numbers = identities(world)
    assert numbers["a"] == numbers["b"]
    assert len(set(numbers.values())) == 4
    assert min(numbers.values()) >= 256


def test_who_has_no_number_is_left_out() -> None:
    assert members(read(workload("a", "10.1.0.1"))).all == ()


def test_where_everyone_is() -> None:
    text = NODES + workload("here", "10.1.0.1") + workload("gone", "10.1.0.2")
    text += "".join(workload(f"on-{n}", f"10.2.0.{i}", node=f"node-{n}") for i, n in enumerate("bcd", 1))
    world, _ = settle(read(text, absent=("gone",)))
    here, gone = _member(world, "here"), _member(world, "gone")
    assert (here.local, here.present, here.mesh) == (True, True, False)
    assert (gone.local, gone.present, gone.mesh) == (True, False, False)
    assert [m.document.key.name for m in members(world).local()] == ["here"]
    # A Node object makes a mesh node, unless it says that it is none.
    assert [_member(world, f"on-{n}").mesh for n in "bcd"] == [True, False, False]
    assert all(_member(world, f"on-{n}").present for n in "bcd")


def _authentication(name: str, spec: str, namespace: str = "default") -> str:
    return f"""
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
---"""


@pytest.mark.parametrize(
    ("authentications", "mode"),
    [
        ([], MeshMode.PERMISSIVE),
        ([("penstock", "{mtls: {mode: STRICT}}")], MeshMode.STRICT),
        ([("istio-system", "{mtls: {mode: DISABLE}}")], MeshMode.OFF),
        ([("default", "{mtls: {mode: STRICT}}")], MeshMode.STRICT),
        ([("other", "{mtls: {mode: STRICT}}")], MeshMode.PERMISSIVE),
        ([("penstock", "{mtls: {mode: STRICT}}"), ("default", "{mtls: {mode: DISABLE}}")], MeshMode.OFF),
        ([("penstock", "{mtls: {mode: STRICT}}"), ("default", "{mtls: {mode: UNSET}}")], MeshMode.STRICT),
        (
            [
                ("default", "{mtls: {mode: STRICT}}"),
                ("default", "{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}}"),
            ],
            MeshMode.PERMISSIVE,
        ),
        ([("default", "{selector: {matchLabels: {app: db}}, mtls: {mode: STRICT}}")], MeshMode.PERMISSIVE),
        ([("other", "{selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}}")], MeshMode.PERMISSIVE),
        ([("default", "{selector: {matchLabels: {app: web}}}")], MeshMode.PERMISSIVE),
    ],
)
def test_the_narrowest_authentication_wins(authentications: list[tuple[str, str]], mode: MeshMode) -> None:
    text = workload("web", "10.1.0.1")
    for number, (namespace, spec) in enumerate(authentications):
        text += _authentication(f"p{number}", spec, namespace)
    world, _ = make(text)
    assert MeshModes(world).of(_member(world, "web")) is mode
