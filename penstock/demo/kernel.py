"""What no L7 rule names: the kernel alone carries it, or drops it."""

from __future__ import annotations

from penstock.demo import client
from penstock.demo.evidence import rise
from penstock.demo.mesh import Mesh
from penstock.demo.report import Check, Found
from penstock.demo.tell import NOTHING, dial, reason
from penstock.demo.watch import flow


def kernel_only(mesh: Mesh) -> Found:
    """L4 that a policy allows never sees Envoy."""
    node, address = mesh.node_of("db"), mesh.vip("db")
    data = bytes(range(256)) * 4096
    before, proxied, mark = node.counters(), node.proxied(), node.watch.mark()
    got = client.echoed(mesh.netns("frontend"), address, 5432, data)
    record = node.watch.after(mark, flow("default/frontend", "default/db", 5432))
    moved, through = rise(before, node.counters()), node.proxied() - proxied
    forwarded, redirected = moved.get("FORWARDED_LOCAL", 0), moved.get("REDIRECTED", 0)
    return Found(
        sent=(f"frontend → db {address}:5432, {len(data) >> 10} KiB over TCP",),
        got=(f"{len(got) >> 10} KiB back",),
        went=(
            mesh.told(record),
            f"{forwarded} packets forwarded in the kernel, {redirected} steered to Envoy",
        ),
        checks=(
            Check("the same bytes came back", got == data),
            Check("the kernel handed them over (FORWARDED_LOCAL)", reason(record) == "FORWARDED_LOCAL"),
            Check("not one packet was steered to Envoy", forwarded > 0 and redirected == 0),
            Check("Envoy counts not one connection more", through == 0),
        ),
    )


def kernel_drop(mesh: Mesh) -> Found:
    """L4 that no rule allows is dropped, counted, and told with its reason."""
    node, address = mesh.node_of("db"), mesh.vip("db")
    before, proxied, mark = node.counters(), node.proxied(), node.watch.mark()
    outcome = dial(mesh.netns("intruder"), address, 5432)
    record = node.watch.after(mark, flow("default/intruder", "default/db", 5432))
    moved, through = rise(before, node.counters()), node.proxied() - proxied
    return Found(
        sent=(f"intruder → db {address}:5432",),
        got=(outcome,),
        went=(mesh.told(record), f"POLICY_DENIED_INGRESS +{moved.get('POLICY_DENIED_INGRESS', 0)} packets"),
        checks=(
            Check("nothing came back", outcome == NOTHING),
            Check("observe tells the reason", reason(record) == "POLICY_DENIED_INGRESS"),
            Check("the drop is counted", moved.get("POLICY_DENIED_INGRESS", 0) > 0),
            Check("Envoy counts not one connection more", through == 0),
        ),
    )
