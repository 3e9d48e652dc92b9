"""Labels and selectors, as Cilium means them.

A workload's labels are its own (source ``k8s``) plus its namespace and its service account; a
reserved identity has one label ``reserved:<name>``. Selector keys may carry a source prefix; ``any:`` and
no prefix match whatever the source.

Source: Cilium 1.20, "Endpoint selectors" and "Reserved identities"; ../../README.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from penstock.dns.patterns import Names
from penstock.manifests.kinds import LabelSelector
from penstock.policy.prefixes import PrefixIndex

NAMESPACE = "io.kubernetes.pod.namespace"
SERVICE_ACCOUNT = "io.cilium.k8s.policy.serviceaccount"
NAMESPACE_LABELS = "io.cilium.k8s.namespace.labels."
"""Before the key of a label of the workload's namespace."""
NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""The label that every namespace has: its name."""

HOST, WORLD, REMOTE_NODE, INGRESS = 1, 2, 6, 8
DNS = 102
"""The node's own DNS, while it has an address: with number and labels of Cilium's identity for kube-dns, so
that the rules that people have for that mean this."""
RESERVED = {HOST: "host", WORLD: "world", REMOTE_NODE: "remote-node", INGRESS: "ingress"}
"""Numbers below 256 with a meaning of their own (Cilium's)."""

Labels = Mapping[str, str]


def workload_labels(
    namespace: str, service_account: str, labels: Labels, namespace_labels: Labels
) -> dict[str, str]:
    named = {**namespace_labels, NAMESPACE_NAME: namespace}
    return {
        **labels,
        **{NAMESPACE_LABELS + key: value for key, value in named.items()},
        NAMESPACE: namespace,
        SERVICE_ACCOUNT: service_account,
    }


def reserved_labels(identity: int) -> dict[str, str]:
    return {f"reserved:{RESERVED[identity]}": ""}


DNS_LABELS: Mapping[str, str] = {
    "k8s-app": "kube-dns",
    NAMESPACE: "kube-system",
    SERVICE_ACCOUNT: "kube-dns",
    NAMESPACE_LABELS + NAMESPACE_NAME: "kube-system",
}

WORLD_LABELS: Mapping[str, str] = reserved_labels(WORLD)
"""What the identities of networks have too: they are part of the world."""


def _bare(key: str) -> str:
    for prefix in ("k8s:", "any:"):
        if key.startswith(prefix):
            return key[len(prefix) :]
    return key


class Selector:
    """What a selector means: of one endpoint's labels when called, of all identities by an index.

    Made by `predicate`.
    """

    __slots__ = ("_expressions", "_wanted")

    def __init__(self, wanted: dict[str, str], expressions: list[tuple[str, str, frozenset[str]]]) -> None:
        self._wanted = wanted
        self._expressions = expressions

    def __call__(self, labels: Labels) -> bool:
        return all(labels.get(k) == v for k, v in self._wanted.items()) and self._expressed(labels)

    def _expressed(self, labels: Labels) -> bool:
        for key, operator, values in self._expressions:
            if operator == "In":
                ok = labels.get(key) in values
            elif operator == "NotIn":
                ok = labels.get(key) not in values
            elif operator == "Exists":
                ok = key in labels
            else:
                ok = key not in labels
            if not ok:
                return False
        return True

    def identities(self, index: LabelIndex) -> frozenset[int]:
        """Every identity that the selector selects."""
        found = index.with_all(self._wanted.items())
        if self._expressions:
            found = frozenset(i for i in found if self._expressed(index.labels[i]))
        return found


class LabelIndex:
    """Identities by label and by address, so that a selector touches only those that it may select."""

    def __init__(
        self,
        labels: Mapping[int, Labels],
        prefixes: PrefixIndex,
        nodes: Mapping[int, str] | None = None,
        names: Mapping[Names, int] | None = None,
    ) -> None:
        """`labels` are those of the identities of `prefixes` too, and of `nodes`: other nodes' own.

        `names` are the lists of names in policies (toFQDNs), which nobody has as labels.
        """
        self.labels = labels
        self.names: Mapping[Names, int] = names or {}
        self.nodes: Mapping[int, str] = nodes or {}
        self.prefixes = prefixes
        self._all = frozenset(labels)
        by_label: dict[tuple[str, str], set[int]] = {}
        for identity, own in labels.items():
            for pair in own.items():
                by_label.setdefault(pair, set()).add(identity)
        self._by_label = {pair: frozenset(found) for pair, found in by_label.items()}

    def with_all(self, pairs: Iterable[tuple[str, str]]) -> frozenset[int]:
        sets = sorted((self._by_label.get(pair, frozenset()) for pair in pairs), key=len)
        return frozenset.intersection(*sets) if sets else self._all


Expression = tuple[str, str, frozenset[str]]
IN_THE_MESH: Expression = (NAMESPACE, "Exists", frozenset())
"""What workloads have and the world and nodes have not."""


def _read(selector: LabelSelector, prefix: str = "") -> tuple[dict[str, str], list[Expression]]:
    wanted = {prefix + _bare(k): v for k, v in selector.match_labels.items()}
    return wanted, [
        (prefix + _bare(e.key), str(e.operator), frozenset(e.values)) for e in selector.match_expressions
    ]


def predicate(selector: LabelSelector, *, within: str | None = None) -> Selector:
    """What a CiliumNetworkPolicy's peer means as a function of an endpoint's labels.

    `within` is the policy's namespace: a selector that names neither a namespace (by its name or labels) nor
    a reserved label means endpoints of that namespace only; of a clusterwide policy ('') it means workloads
    wherever they are. None leaves the selector as it is.
    """
    wanted, expressions = _read(selector)
    keys = {*wanted, *(key for key, _, _ in expressions)}
    if within is not None and not any(
        k == NAMESPACE or k.startswith(("reserved:", NAMESPACE_LABELS)) for k in keys
    ):
        if within:
            wanted[NAMESPACE] = within
        else:
            expressions.append(IN_THE_MESH)
    return Selector(wanted, expressions)


def subjects(selector: LabelSelector, namespace: str) -> Selector:
    """Whom a policy of `namespace` ('': a clusterwide one) is about; never one of another namespace."""
    wanted, expressions = _read(selector)
    if namespace:
        expressions.append((NAMESPACE, "In", frozenset({namespace})))
        wanted.setdefault(NAMESPACE, namespace)
    return Selector(wanted, expressions)


def pods(pod: LabelSelector | None, namespaces: LabelSelector | None, own: str) -> Selector:
    """A peer of a NetworkPolicy: pods of the chosen namespaces, or of its own if it chooses none."""
    wanted, expressions = _read(pod or LabelSelector())
    if namespaces is None:
        wanted[NAMESPACE] = own
    else:
        more, others = _read(namespaces, NAMESPACE_LABELS)
        wanted |= more
        expressions += [IN_THE_MESH, *others]
    return Selector(wanted, expressions)
