"""Following a change gives what compiling all anew gives: plans, tables' bytes, and the store's documents."""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import read

from penstock.compiler import compile_world
from penstock.differing import Table, apart, differing, placed, replaced
from penstock.manifests.store import Store
from penstock.planner import Planner
from penstock.redirect.encoder import TableEncoder, encode
from penstock.redirect.stage import InKernel, changing_hands
from penstock.world import Attachment, Link, World, is_host

APPS, WORKLOADS = 3, 9
NODES = "\n---\n".join(
    f"{{apiVersion: v1, kind: Node, metadata: {{name: {n}}}, status: {{addresses: "
    f"[{{type: InternalIP, address: 192.0.2.{i}}}]}}}}"
    for i, n in enumerate(("node", "far"), 1)
)
POLICIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: a}
spec:
  endpointSelector: {matchLabels: {app: a0}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: a1}}]
    toPorts: [{ports: [{port: web}], rules: {http: [{path: /x}]}}]
  - fromEndpoints: [{matchLabels: {app: a2}}]
    authentication: {mode: required}
---
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: b, annotations: {penstock.dev/audit: "true"}}
spec:
  endpointSelector: {matchLabels: {app: a1}}
  egress: [{toEndpoints: [{matchLabels: {app: a0}}], toPorts: [{ports: [{port: web}, {port: 99}]}]}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: far}
spec: {selector: {matchLabels: {app: a2}}, mtls: {mode: STRICT}}
"""
SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: s}
spec: {selector: {app: a0}, ports: [{port: 80, targetPort: web}], clusterIP: 10.96.0.9}
"""


def manifest(number: int, app: int, *, far: bool = False, address: int = 0, port: bool = False) -> str:
    where = "node: far" if far else f"netns: /run/netns/w{number}"
    ports = "[{name: web, containerPort: 8080}]" if port else "[]"
    return (
        "apiVersion: penstock.dev/v1alpha1\nkind: Workload\n"
        f"metadata: {{name: w{number}, labels: {{app: a{app}}}}}\n"
        f"spec: {{{where}, addresses: [10.0.0.{address or number + 1}], ports: {ports}}}\n"
    )


ATTACHMENTS = {
    ("default", f"w{n}"): Attachment(
        100 + n // 2 if n > 6 else 100 + n,
        (Link(10 + n, f"veth{n}", bytes(6), (ip_address(f"10.0.0.{n + 1}"),)),),
    )
    for n in range(WORKLOADS)
}
EDITS = st.builds(
    lambda number, app, far, address, port: (
        f"w{number}.yaml",
        None if app is None else manifest(number, app, far=far, address=address, port=port),
    ),
    st.integers(0, WORKLOADS - 1),
    st.one_of(st.none(), st.integers(0, APPS), st.integers(0, APPS - 1)),
    st.booleans(),
    st.sampled_from([0, 0, 0, 3, 77]),
    st.booleans(),
)
OTHERS = st.sampled_from(
    [
        ("policies.yaml", POLICIES),
        ("policies.yaml", POLICIES.replace("/x", "/y")),
        ("policies.yaml", "# none"),
        ("service.yaml", SERVICE),
        ("service.yaml", None),
    ]
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(EDITS, EDITS, EDITS, OTHERS), min_size=1, max_size=2), min_size=1, max_size=10
    )
)
def test_what_follows_is_what_is_made_anew(edits: list[list[tuple[str, str | None]]]) -> None:
    store, planner, encoder = Store(), Planner(), TableEncoder()
    files: dict[str, str | None] = {f"w{n}.yaml": manifest(n, n % APPS) for n in range(WORKLOADS)}
    files |= {"nodes.yaml": NODES, "policies.yaml": POLICIES}
    world = World("node", {}, ATTACHMENTS)
    shown: dict[bytes, bytes] = {}
    ipcache: Table = Table()
    for changes in [list(files.items()), *edits]:
        files |= dict(changes)
        found = store.apply(dict(changes))
        whole = Store().apply({name: text for name, text in files.items() if text is not None})
        assert list(found.documents) == list(whole.documents)
        assert [d.value for d in found.documents.values()] == [d.value for d in whole.documents.values()]
        world = World("node", found.documents, ATTACHMENTS, allocations=world.allocations)
        world, plan = planner.plan(world)
        anew = compile_world(replace(world))
        assert plan == anew
        assert encoder.encode(plan.kernel) == encode(anew.kernel)
        # Whoever looks at the differences alone sees all of them.
        after = plan.kernel.ipcache
        assert set(differing(ipcache, after)) >= {
            k for k in ipcache | after if ipcache.get(k) != after.get(k)
        }
        left = {
            n.network_address
            for n, e in ipcache.items()
            if is_host(n) and (n not in after or after[n].identity != e.identity)
        }
        assert changing_hands(plan.kernel, InKernel({}, {}, (), ipcache)) == left
        raw = encoder.encode(plan.kernel)["ipcache"]
        for key in differing(shown, raw):
            shown.pop(key, None)
        assert all(raw[key] == value for key, value in shown.items())
        shown, ipcache = dict(raw), Table(after)


def test_a_label_that_others_have_keeps_the_shape_and_what_stands_on_it() -> None:
    text = "---\n".join(manifest(n, n % APPS) for n in range(WORKLOADS))
    planner = Planner()
    world = read(text + "---\n" + POLICIES, node="node")
    world, _ = planner.plan(world)
    before = planner.facts
    assert before is not None
    documents = {**world.documents}
    changed = read(manifest(3, 1), node="node").documents
    documents.update(changed)
    _, plan = planner.plan(replace(world, documents=documents))
    after = planner.facts
    assert after is not None
    assert after.changed == tuple(changed)
    assert after.members.shape is before.members.shape
    assert after.stances.ingress is before.stances.ingress
    assert all(after.entries[place] is table for place, table in before.entries.items())
    assert len(differing(before.ipcache, plan.kernel.ipcache)) == 1


def test_of_tables_that_are_no_neighbours_no_difference_is_believed() -> None:
    first: Table[str, int] = Table({"a": 1, "b": 2})
    second = first.after({"a": 3})
    third = second.after({"b": None, "c": 4})
    assert (third, second, first) == ({"a": 3, "c": 4}, {"a": 3, "b": 2}, {"a": 1, "b": 2})
    assert set(differing(second, third)) == {"b", "c"}
    assert set(differing(first, third)) == {"a", "b", "c"}
    assert set(differing(dict(second), third)) == {"b", "c"}
    assert differing(third, third) == ()


def test_what_was_replaced_is_found_wherever_it_stands() -> None:
    same = [object() for _ in range(3)]
    old = dict(zip("abcd", (same[0], same[1], same[0], same[2]), strict=True))
    assert replaced(old, old) == replaced(old, dict(old)) == []
    assert set(replaced(old, {**old, "b": object()})) == {"b"}
    assert set(replaced(old, {"x": same[0], **old})) == {"x"}
    assert set(replaced({"x": same[0], **old}, old)) == {"x"}
    # The very same values in the same order, under other names.
    assert set(replaced(old, dict(zip("abzd", old.values(), strict=True)))) == {"c", "z"}
    assert set(replaced(old, {})) == set(replaced({}, old)) == set(old)
    assert replaced(old, dict(reversed(old.items()))) == []


def test_what_is_the_very_same_at_both_ends_is_left_out() -> None:
    a, b, c, d = (object() for _ in range(4))
    assert apart((a, b, c), (a, d, c)) == ((b,), (d,))
    assert apart((a, b, c), (a, b, d, c)) == ((), (d,))
    assert apart((a, b, a), (a, b, a, b, a)) == ((), (b, a))
    assert apart((a, b), (a, b)) == apart((), ()) == ((), ())
    assert apart((a, b), (c, d)) == ((a, b), (c, d))


@pytest.mark.parametrize("late", [0, 1, 5, 70])
def test_late_entries_are_put_in_their_place(late: int) -> None:
    numbers = random.Random(late).sample(range(1000), 100)
    there, came = sorted(numbers[late:]), numbers[:late]
    table = {number: object() for number in (*there, *came)}
    found = placed(table, late, lambda number: number)
    assert list(found) == sorted(numbers)
    assert found == table
