"""Which node may have which certificate: that of a workload only if the workload runs there. Pure.

What says so are the manifests (`Workload`, `spec.node`), or what the operator let the node have when it
joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from penstock.manifests.document import Document
from penstock.manifests.kinds import Workload
from penstock.mtls import spiffe
from penstock.mtls.errors import RequestError
from penstock.mtls.tokens import Grant

INGRESS = ("penstock", "ingress")
"""Namespace and service account of a node's own ingress address; each node has one."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Workload (``namespace/name``) → its service account and node; None where no node is said."""

    workloads: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)

    def check(self, grant: Grant, trust_domain: str, spiffe_id: str, owner: str) -> None:
        """Raises RequestError, which says why that node may not have that certificate for that workload."""
        namespace, _, _name = owner.partition("/")
        prefix = f"{spiffe.SCHEME}{trust_domain}/ns/{namespace}/sa/"
        account = spiffe_id.removeprefix(prefix)
        if not spiffe_id.startswith(prefix) or "/" in account:
            raise RequestError(f"{spiffe_id} is not of the namespace of {owner}")
        if (namespace, account) == INGRESS or grant.allows(namespace, account):
            return
        found = self.workloads.get(owner)
        if found is None:
            raise RequestError(f"no manifest tells of {owner}, nor may {grant.node} have what it asks for")
        if found[1] is None:
            raise RequestError(f"the manifest of {owner} names no node: say spec.node")
        if found[1] != grant.node:
            raise RequestError(f"{owner} runs on {found[1]}, not on {grant.node}")
        if found[0] != account:
            raise RequestError(f"{owner} is of the service account {found[0]}, not {account}")


def placement(documents: Iterable[Document]) -> Placement:
    return Placement(
        {
            f"{d.key.namespace}/{d.key.name}": (d.value.spec.service_account_name, d.value.spec.node)
            for d in documents
            if isinstance(d.value, Workload)
        }
    )
