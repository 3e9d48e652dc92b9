"""A compiler that remembers gives what one without memory gives, whatever was edited before."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.compiler import Compiler, compile_world
from penstock.manifests.store import Store
from penstock.plan import Plan
from penstock.planner import numbered
from penstock.world import Attachment, Link, World

APPS = 4


def workload(app: int, label: int) -> str:
    return f"""apiVersion: penstock.dev/v1alpha1
kind: Workload
metadata: {{name: w{app}, labels: {{app: app{label}}}}}
spec:
  netns: /run/netns/w{app}
  addresses: [10.0.1.{app + 1}]
  ports: [{{name: http, containerPort: 8080}}]
"""


def service(app: int, label: int) -> str:
    return f"""apiVersion: v1
kind: Service
metadata: {{name: s{app}}}
spec: {{selector: {{app: app{label}}}, ports: [{{port: 80, targetPort: http}}]}}
"""


def policy(app: int, label: int) -> str:
    rules = (
        f"ingress: [{{fromEndpoints: [{{matchLabels: {{app: app{label}}}}}], toPorts: "
        f'[{{ports: [{{port: http, protocol: TCP}}], rules: {{http: [{{path: "/{label}"}}]}}}}]}}]',
        f"egress: [{{toEndpoints: [{{matchLabels: {{app: app{label}}}}}]}}]",
        "ingressDeny: [{fromEntities: [world]}]",
        "ingress: [{}]",
        f"ingress: [{{fromCIDR: [10.0.2.{label}/32, 192.0.2.0/{24 + label}]}}]",
        f"ingress: [{{fromEndpoints: [{{matchLabels: {{io.cilium.k8s.namespace.labels.team: t{label}}}}}]}}]",
    )[(app + 2 * label) % 6]
    return f"""apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {{name: p{app}}}
spec:
  endpointSelector: {{matchLabels: {{app: app{app}}}}}
  {rules}
"""


def route(app: int, label: int) -> str:
    return f"""apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r{app}}}
spec:
  parentRefs: [{{group: "", kind: Service, name: s{app}}}]
  rules: [{{backendRefs: [{{name: s{label}, port: 80}}]}}]
"""


def remote(app: int, label: int) -> str:
    """A workload of another node; some have one address, and some are not in the mesh."""
    return f"""apiVersion: penstock.dev/v1alpha1
kind: Workload
metadata: {{name: r{app}, labels: {{app: app{label}}}}}
spec: {{node: {"far" if app else "nowhere"}, addresses: [10.0.2.{label % 3}]}}
"""


def node(app: int, label: int) -> str:
    return f"""apiVersion: v1
kind: Node
metadata: {{name: far, annotations: {{penstock.dev/mesh: "{"false" if label % 2 else "true"}"}}}}
status: {{addresses: [{{type: InternalIP, address: 10.0.2.{app}}}]}}
"""


def namespace(app: int, label: int) -> str:
    return f"""apiVersion: v1
kind: Namespace
metadata: {{name: {"default" if app else "other"}, labels: {{team: t{label}}}}}
"""


def plain(app: int, label: int) -> str:
    return f"""apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: n{app}}}
spec:
  podSelector: {{matchLabels: {{app: app{app}}}}}
  ingress:
  - from:
    - namespaceSelector: {{matchLabels: {{team: t{label}}}}}
    - ipBlock: {{cidr: 10.0.{label}.0/24}}
"""


MAKERS = {"workload": workload, "service": service, "policy": policy, "route": route}
MORE = {"remote": remote, "node": node, "namespace": namespace, "plain": plain}
EDITS = st.tuples(
    st.sampled_from(sorted(MAKERS) + sorted(MORE)),
    st.integers(0, APPS - 1),
    st.none() | st.integers(0, APPS - 1),
)


def _attachments() -> dict[tuple[str, str], Attachment]:
    return {
        ("default", f"w{app}"): Attachment(
            1000 + app, (Link(app + 10, addresses=(ip_address(f"10.0.1.{app + 1}"),)),)
        )
        for app in range(APPS)
    }


@settings(max_examples=100, deadline=None)
@given(st.lists(EDITS, min_size=1, max_size=12))
def test_memory_changes_no_plan(edits: list[tuple[str, int, int | None]]) -> None:
    store, compiler = Store(), Compiler()
    first = {
        f"{kind}{app}.yaml": make(app, app) for kind, make in (MAKERS | MORE).items() for app in range(APPS)
    }
    world = World("node", store.apply(first).documents, attachments=_attachments())
    for kind, app, label in [("workload", 0, 0), *edits]:
        text = None if label is None else (MAKERS | MORE)[kind](app, label)
        world = replace(world, documents=store.apply({f"{kind}{app}.yaml": text}).documents)
        world = numbered(world, tuple(world.allocations.listener_ports))
        plan: Plan = compiler.compile(world)
        assert plan == compile_world(world)
        world = numbered(world, plan.listener_names)
        carried = (
            frozenset({(ip_address("10.0.1.1"), ip_address("10.0.1.2"), 8080)}) if label else frozenset()
        )
        world = replace(world, carried=carried)
        assert compiler.compile(world) == compile_world(world)
