"""Names that several resources, the daemon and the logs share.

A name stands for what a thing is, so that an edit changes a resource in place. Names of services and of
their clusters come from the route model and contain a slash; the ones below do not.
"""

from __future__ import annotations

from penstock.world import Address

WORKLOADS = "workloads"
"""The cluster of everything that may be reached at its own address."""

ORIGINAL_DST = "original-dst"
"""The cluster of TLS_TCP listeners: the address that was dialled, in plain text."""

NO_BACKEND = "no-backend"
"""A cluster that never exists: requests whose backend reference cannot be used go there and get 500."""

MIRRORS = "mirrors"
"""The way of copies of requests to where they are judged: a cluster, a listener and a route table."""

MIRROR_CLUSTER_HEADER = "x-penstock-mirror-cluster"
MIRROR_CLASS_HEADER = "x-penstock-mirror-class"
MIRROR_CLIENT_HEADER = "x-penstock-mirror-client"
"""What a copy says of itself on that way; whatever a client sends under these names is overwritten."""

OVER_MESH, OVER_MESH_OWN = "over-mesh", "over-mesh:own"
"""Listeners in user space that carry a backend's own TLS over mesh TLS: with the client's address, or one
of the node."""

ADS_CLUSTER = "ads"
ALS_CLUSTER = "als"

TRUST_BUNDLE = "trust-bundle"
"""The secret with the certificates of the trust domain's CA."""

NO_SECRET = "none"
"""The secret asked for when a connection names none. It must never exist."""

SOURCE_CLASS_STATE = "penstock.source_class"
"""Filter state that states the source class of a connection, as decimal text."""

CLIENT_CLASS_STATE = "penstock.client_class"
"""Filter state that states the class of a Gateway's client, where an L7 rule names it."""

SOURCE_NAMESPACE_STATE = "penstock.source_namespace"
"""Filter state that states the namespace of the source class, by which consumer routes match."""

EDGE6_STATE = "penstock.edge6"
"""The address of Gateways towards IPv6 backends, where the client secret is the one of IPv4."""
CLIENT_SECRET_STATE = "envoy.tls.certificate_mappers.on_demand_secret"
"""Filter state that names the client certificate: the client's address (Envoy's own key)."""

UPSTREAM_SNI_STATE = "envoy.network.upstream_server_name"
"""Filter state that sets the SNI of a TCP connection upstream (Envoy's own key)."""

RIGHTS_FILTER = "penstock.rights"
"""The upstream filter that judges a request for the chosen endpoint; route tables carry its rules."""

ADMISSION_FILTER = "penstock.admission"
"""The filter that judges a request to a Gateway as the client sends it; route tables carry its rules."""

CORS_FILTER = "envoy.filters.http.cors"
"""Envoy's own name: does nothing but on routes that configure it."""

DESTINATION_HEADER = "x-penstock-destination"
"""Carries the dialled address inside Envoy; whatever a client sends under this name is overwritten."""

CLIENT_HEADER = "x-penstock-client"
"""Tells a rate limit who the client is; nobody else sees it, and whatever a client sends under this name is
overwritten."""

METADATA = "penstock"
METADATA_CLASS = "class"
"""Endpoint metadata: the policy class, which the rights filter reads."""

METADATA_LB = "envoy.lb"
METADATA_ADDRESS = "address"
"""Endpoint metadata: address and port as text, by which the workloads cluster picks exactly one host."""

METADATA_TLS = "envoy.transport_socket_match"
METADATA_PEER = "peer"
"""Endpoint metadata: the SPIFFE id to demand, by which the transport socket is chosen."""

METADATA_OVER = "over"
"""The same for a backend with a TLS of its own: set where that goes inside mesh TLS."""

METADATA_ORIGINAL_DST = "envoy.filters.listener.original_dst"
METADATA_LOCAL = "local"
METADATA_OVER_MESH = "over-mesh"
METADATA_CLUSTER = "cluster"
"""Endpoint metadata for what goes inside mesh TLS: its address (Envoy's own keys), and the cluster of it."""


def workloads_table(source_class: int) -> str:
    """Name of the route table with which a source class reaches workloads at their own address.

    One per class, because Envoy looks at a table's rights one after the other.
    """
    return f"{WORKLOADS}:{source_class}"


def mtls_cluster(server_id: str, source: Address | None = None, *, judged: bool = True) -> str:
    """Name of the cluster that reaches a dialled address over mesh TLS and demands `server_id` there.

    It leaves from `source`, or from the client's address; what is not `judged` here the kernel judges.
    """
    own = "" if source is None else f"@{source}"
    return f"mtls:{server_id}{own}{'' if judged else '/stream'}"


def host_port(address: Address, port: int) -> str:
    """Address and port as Envoy prints them (RFC 3986 brackets around IPv6)."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
