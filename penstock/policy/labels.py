"""Labels and selectors, as Cilium means them.

A workload's labels are its own (source ``k8s``) plus its namespace and its service account; a
reserved identity has one label ``reserved:<name>``. Selector keys may carry a source prefix; ``any:`` and
no prefix match whatever the source.

Source: Cilium 1.20, "Endpoint selectors" and "Reserved identities"; ../../README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from penstock.manifests.kinds import LabelSelector

NAMESPACE = "io.kubernetes.pod.namespace"
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"

HOST, WORLD, REMOTE_NODE, INGRESS = 1, 2, 6, 8
RESERVED = {HOST: "host", WORLD: "world", REMOTE_NODE: "remote-node", INGRESS: "ingress"}
"""Numbers below 256 with a meaning of their own (Cilium's)."""

Labels = Mapping[str, str]
Predicate = Callable[[Labels], bool]


def workload_labels(namespace: str, service_account: str, labels: Labels) -> dict[str, str]:
    return {**labels, NAMESPACE: namespace, SERVICE_ACCOUNT: service_account}


def reserved_labels(identity: int) -> dict[str, str]:
    return {f"reserved:{RESERVED[identity]}": ""}


def _bare(key: str) -> str:
    for prefix in ("k8s:", "any:"):
        if key.startswith(prefix):
            return key[len(prefix) :]
    return key


def predicate(selector: LabelSelector, *, within: str | None = None) -> Predicate:
    """What `selector` means as a function of an endpoint's labels.

    `within` is the policy's namespace: a selector that names neither a namespace nor a reserved
    label means endpoints of that namespace only. None leaves the selector as it is.
    """
    wanted = {_bare(k): v for k, v in selector.match_labels.items()}
    expressions = [(_bare(e.key), e.operator, frozenset(e.values)) for e in selector.match_expressions]
    keys = {*wanted, *(key for key, _, _ in expressions)}
    if within is not None and NAMESPACE not in keys and not any(k.startswith("reserved:") for k in keys):
        wanted[NAMESPACE] = within

    def matches(labels: Labels) -> bool:
        for key, value in wanted.items():
            if labels.get(key) != value:
                return False
        for key, operator, values in expressions:
            present = key in labels
            if operator == "In":
                ok = present and labels[key] in values
            elif operator == "NotIn":
                ok = not present or labels[key] not in values
            elif operator == "Exists":
                ok = present
            else:
                ok = not present
            if not ok:
                return False
        return True

    return matches
