"""What rule would allow it: a CiliumNetworkPolicy of its own that opens just this and closes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import yaml

from penstock.explain.hop import Missing
from penstock.explain.model import Request
from penstock.plan import Direction
from penstock.policy.identities import Member
from penstock.policy.labels import NAMESPACE, RESERVED, SERVICE_ACCOUNT
from penstock.world import host_network

Json = dict[str, Any]
_FAMILIES = {"ICMP": "IPv4", "ICMPV6": "IPv6"}


def _selector(member: Member, within: str) -> Json:
    """Selects members of this identity; where they carry no label, their service account."""
    labels = dict(member.document.metadata.labels) or {SERVICE_ACCOUNT: member.service_account}
    if member.namespace != within:
        labels[f"k8s:{NAMESPACE}"] = member.namespace
    return {"matchLabels": labels}


def _request(request: Request) -> Json:
    found: Json = {"method": request.method}
    if request.path != "/.*":
        found["path"] = re.sub(r"([.+*?()\[\]{}|^$\\])", r"\\\1", request.path)
    return found


def _port(missing: Missing) -> Json:
    rule: Json = {"ports": [{"port": str(missing.port), "protocol": missing.protocol}]}
    if missing.request is not None:
        rule["rules"] = {"http": [_request(missing.request)]}
    return rule


def _policy(missing: Missing) -> Json:
    namespace = missing.subject.namespace
    way, peers = ("ingress", "from") if missing.direction is Direction.INGRESS else ("egress", "to")
    rule: Json = {}
    if missing.peer is not None:
        rule[f"{peers}Endpoints"] = [_selector(missing.peer, namespace)]
    elif missing.peer_identity in RESERVED:
        rule[f"{peers}Entities"] = [RESERVED[missing.peer_identity]]
    else:
        rule[f"{peers}CIDR"] = [str(host_network(missing.peer_address))]
    if missing.protocol in _FAMILIES:
        rule["icmps"] = [{"fields": [{"type": missing.port, "family": _FAMILIES[missing.protocol]}]}]
    else:
        rule["toPorts"] = [_port(missing)]
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": _name(missing, way), "namespace": namespace},
        "spec": {
            "endpointSelector": _selector(missing.subject, namespace),
            # The rule opens; what else is open stays so.
            "enableDefaultDeny": {way: False},
            way: [rule],
        },
    }


def _name(missing: Missing, way: str) -> str:
    peer = missing.peer.document.key.name if missing.peer else RESERVED.get(missing.peer_identity, "peer")
    return f"{missing.subject.document.key.name}-{way}-{peer}"[:63].rstrip("-.")


def manifest(missing: Iterable[Missing]) -> str:
    """The missing rules as YAML documents; empty if nothing is missing."""
    documents = {json.dumps(found, sort_keys=True): found for found in map(_policy, missing)}
    if not documents:
        return ""
    return yaml.safe_dump_all(documents.values(), sort_keys=False, default_flow_style=False)
