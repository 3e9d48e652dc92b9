"""Where requests may go: EDS clusters of workloads, and the address that was dialled for plain TCP.

Every socket upstream takes its port from a range of its own: it can then not collide with a connection
that the same workload opens itself, and the next node tells mesh TLS by it. The option is ignored without
an error where the namespace's ip_local_port_range does not contain the range.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2, protocol_pb2
from envoy.extensions.filters.http.upstream_codec.v3 import upstream_codec_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from google.protobuf import wrappers_pb2

from penstock.envoy import edge_tls, marks, names, over_mesh, rbac, tls, traffic
from penstock.envoy.protos import ADS, pack, seconds, socket_option
from penstock.routing.model import ProxyEndpoint, UpstreamTls
from penstock.routing.traffic import Traffic
from penstock.world import Address

_IPPROTO_IP = 0
_IP_LOCAL_PORT_RANGE = 51
"""include/uapi/linux/in.h; the low half of the value is the first port, the high half the last."""

_SOL_SOCKET, _SO_MARK = 1, 36

_OWN_TLS_PORTS = (32768, 60999)
"""Source ports towards backends with a TLS of their own: what leaves from the others is mesh TLS."""

_CONNECT_TIMEOUT = 5.0

_UNLIMITED = 0xFFFFFFFF
"""The kernel has no such limits for direct connections; Envoy's own (1,024) are met by one busy client."""

_Cluster = cluster_pb2.Cluster

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Protocol(Enum):
    """What is spoken to a backend."""

    HTTP1 = "HTTP/1.1"
    HTTP2 = "HTTP/2"
    AS_CLIENT = "what the client speaks"


def unlimited() -> circuit_breaker_pb2.CircuitBreakers:
    most = wrappers_pb2.UInt32Value(value=_UNLIMITED)
    threshold = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=most, max_pending_requests=most, max_requests=most
    )
    return circuit_breaker_pb2.CircuitBreakers(thresholds=[threshold])


def _bind(
    source_ports: tuple[int, int], source: Address | None = None, *, judged: bool = True
) -> address_pb2.BindConfig:
    """From `source` the socket bears our mark by itself; else the listener borrows the client's address.

    The mark tells the kernel that what is sent has been `judged` here.
    """
    low, high = source_ports
    value = low | high << 16
    options = [socket_option(_IPPROTO_IP, _IP_LOCAL_PORT_RANGE, value, "IP_LOCAL_PORT_RANGE")]
    if source is None:
        return address_pb2.BindConfig(socket_options=options)
    if judged:
        options.append(socket_option(_SOL_SOCKET, _SO_MARK, marks.UPSTREAM, "SO_MARK"))
    address = address_pb2.SocketAddress(address=str(source), port_value=0)
    return address_pb2.BindConfig(
        socket_options=options, source_address=address, freebind=wrappers_pb2.BoolValue(value=True)
    )


def _ports(
    source_ports: tuple[int, int], source: Address | None, backend_tls: UpstreamTls | None
) -> tuple[int, int]:
    """With the client's address all come from one range: another could be in use by the client itself."""
    return source_ports if source is None or backend_tls is None else _OWN_TLS_PORTS


def _raw_buffer() -> base_pb2.TransportSocket:
    return base_pb2.TransportSocket(
        name="envoy.transport_sockets.raw_buffer", typed_config=pack(raw_buffer_pb2.RawBuffer())
    )


def _http_options(protocol: Protocol) -> http_protocol_options_pb2.HttpProtocolOptions:
    """The protocol to the backend, and the filter that judges requests for the endpoint that was chosen.

    The filter's own rules allow nothing, so that a table which forgot its rights is closed.
    """
    options = http_protocol_options_pb2.HttpProtocolOptions(
        http_filters=[
            http_connection_manager_pb2.HttpFilter(
                name=names.RIGHTS_FILTER, typed_config=pack(rbac.rules(()))
            ),
            http_connection_manager_pb2.HttpFilter(
                name="envoy.filters.http.upstream_codec",
                typed_config=pack(upstream_codec_pb2.UpstreamCodec()),
            ),
        ]
    )
    http1, http2 = protocol_pb2.Http1ProtocolOptions(), protocol_pb2.Http2ProtocolOptions()
    if protocol is Protocol.AS_CLIENT:
        options.use_downstream_protocol_config.http_protocol_options.CopyFrom(http1)
        options.use_downstream_protocol_config.http2_protocol_options.CopyFrom(http2)
    elif protocol is Protocol.HTTP2:
        options.explicit_http_config.http2_protocol_options.CopyFrom(http2)
    else:
        options.explicit_http_config.http_protocol_options.CopyFrom(http1)
    return options


def http2_without_filters() -> http_protocol_options_pb2.HttpProtocolOptions:
    """HTTP/2 to a part of this Envoy itself, where what is sent is judged."""
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.explicit_http_config.http2_protocol_options.CopyFrom(protocol_pb2.Http2ProtocolOptions())
    return options


def servers(endpoints: Iterable[ProxyEndpoint]) -> tuple[str, ...]:
    """The server identities that a cluster with these endpoints must be able to demand."""
    return tuple(sorted({item.server_id for item in endpoints if item.server_id is not None}))


def _transport_matches(servers: tuple[str, ...]) -> list[cluster_pb2.Cluster.TransportSocketMatch]:
    """One TLS context per server identity, told by endpoint metadata; what carries none is plain text."""
    matches = []
    for server_id in servers:
        match = _Cluster.TransportSocketMatch(
            name=names.mtls_cluster(server_id), transport_socket=tls.upstream(server_id, sni_of_endpoint=True)
        )
        match.match.update({names.METADATA_PEER: server_id})
        matches.append(match)
    if matches:
        matches.append(_Cluster.TransportSocketMatch(name="plain", match={}, transport_socket=_raw_buffer()))
    return matches


def _own_matches(own: base_pb2.TransportSocket) -> list[cluster_pb2.Cluster.TransportSocketMatch]:
    """A backend's own TLS, inside mesh TLS for endpoints that say so."""
    over = _Cluster.TransportSocketMatch(name="over-mesh", transport_socket=over_mesh.transport(own))
    over.match.update({names.METADATA_OVER: "mesh"})
    return [over, _Cluster.TransportSocketMatch(name="own", match={}, transport_socket=own)]


def service(
    name: str,
    protocol: Protocol,
    servers: tuple[str, ...],
    source_ports: tuple[int, int],
    source: Address | None = None,
    backend_tls: UpstreamTls | None = None,
    said: Traffic | None = None,
) -> cluster_pb2.Cluster:
    """An EDS cluster. It changes with the set of `servers`, not with endpoints that come and go.

    With `backend_tls` each endpoint is spoken to over that TLS, inside mesh TLS where one says so.
    """
    alpn = ("h2",) if protocol is Protocol.HTTP2 else ("http/1.1",)
    own = None if backend_tls is None else edge_tls.upstream(backend_tls, alpn)
    made = _Cluster(
        name=name,
        type=_Cluster.DiscoveryType.EDS,
        eds_cluster_config=_Cluster.EdsClusterConfig(eds_config=ADS),
        connect_timeout=seconds(_CONNECT_TIMEOUT),
        lb_policy=_Cluster.LbPolicy.LEAST_REQUEST,
        circuit_breakers=unlimited(),
        upstream_bind_config=_bind(_ports(source_ports, source, backend_tls), source),
        transport_socket=own,
        transport_socket_matches=_transport_matches(servers) if own is None else _own_matches(own),
        typed_extension_protocol_options={HTTP_OPTIONS: pack(_http_options(protocol))},
    )
    if said is not None:
        traffic.apply(made, said, http2=protocol is Protocol.HTTP2)
    return made


def helper(name: str, protocol: Protocol, source_ports: tuple[int, int]) -> cluster_pb2.Cluster:
    """What the proxy itself asks, from the node's own address. No mark says that anybody judged it, so the
    kernel does."""
    options = http_protocol_options_pb2.HttpProtocolOptions()
    if protocol is Protocol.HTTP2:
        options.explicit_http_config.http2_protocol_options.SetInParent()
    else:
        options.explicit_http_config.http_protocol_options.SetInParent()
    return _Cluster(
        name=name,
        type=_Cluster.DiscoveryType.EDS,
        eds_cluster_config=_Cluster.EdsClusterConfig(eds_config=ADS),
        connect_timeout=seconds(1),
        circuit_breakers=unlimited(),
        upstream_bind_config=_bind(source_ports),
        typed_extension_protocol_options={HTTP_OPTIONS: pack(options)},
    )


def stream(
    name: str,
    servers: tuple[str, ...],
    source_ports: tuple[int, int],
    source: Address | None,
    backend_tls: UpstreamTls | None,
) -> cluster_pb2.Cluster:
    """An EDS cluster for bytes. Its sockets bear no mark, so that the kernel judges what they send."""
    own = None if backend_tls is None else edge_tls.upstream(backend_tls, ())
    return _Cluster(
        name=name,
        type=_Cluster.DiscoveryType.EDS,
        eds_cluster_config=_Cluster.EdsClusterConfig(eds_config=ADS),
        connect_timeout=seconds(_CONNECT_TIMEOUT),
        lb_policy=_Cluster.LbPolicy.LEAST_REQUEST,
        circuit_breakers=unlimited(),
        upstream_bind_config=_bind(_ports(source_ports, source, backend_tls), source, judged=False),
        transport_socket=own,
        transport_socket_matches=_transport_matches(servers) if own is None else _own_matches(own),
    )


def workloads(servers: tuple[str, ...], source_ports: tuple[int, int]) -> cluster_pb2.Cluster:
    """The cluster that serves each request at exactly the address that was dialled, or not at all.

    Nothing was said about the protocol there, except by the client; the Envoy of another node, too, says it
    this way (it asks in HTTP/2 for a backend that needs it).
    """
    cluster = service(names.WORKLOADS, Protocol.AS_CLIENT, servers, source_ports)
    selector = _Cluster.LbSubsetConfig.LbSubsetSelector(
        keys=[names.METADATA_ADDRESS], single_host_per_subset=True
    )
    cluster.lb_subset_config.CopyFrom(
        _Cluster.LbSubsetConfig(
            fallback_policy=_Cluster.LbSubsetConfig.LbSubsetFallbackPolicy.NO_FALLBACK,
            subset_selectors=[selector],
        )
    )
    return cluster


def original_dst(
    name: str,
    source_ports: tuple[int, int],
    server_id: str | None = None,
    source: Address | None = None,
    *,
    judged: bool = True,
) -> cluster_pb2.Cluster:
    """The address that was dialled: in plain text, or over mesh TLS with `server_id` at the other end; from
    the client's address, or from `source`."""
    return _Cluster(
        name=name,
        type=_Cluster.DiscoveryType.ORIGINAL_DST,
        lb_policy=_Cluster.LbPolicy.CLUSTER_PROVIDED,
        connect_timeout=seconds(_CONNECT_TIMEOUT),
        circuit_breakers=unlimited(),
        upstream_bind_config=_bind(source_ports, source, judged=judged),
        transport_socket=None if server_id is None else tls.upstream(server_id, sni_of_endpoint=False),
    )


def original_dst_stream(
    name: str, source_ports: tuple[int, int], server_id: str, source: Address | None
) -> cluster_pb2.Cluster:
    """The same for bytes that nobody has judged here."""
    return original_dst(name, source_ports, server_id, source, judged=False)
