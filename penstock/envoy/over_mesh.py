"""A backend's own TLS inside mesh TLS, towards workloads of other nodes.

Envoy has one TLS socket for each connection. So what speaks the backend's TLS goes, in user space, to a
listener of this same Envoy, and that carries it over mesh TLS as it carries any stream. The endpoint tells
that listener where to, and which cluster proves the server; the connection tells whose it is. Nobody outside
Envoy can reach such a listener, or set what it is told.

Requests are judged before that, for the endpoint that was chosen. The other node sees bytes: its kernel
judges them, and L7 rules of its own cannot.
"""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2 as components
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.common.set_filter_state.v3 import value_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.original_src.v3 import original_src_pb2
from envoy.extensions.filters.network.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.transport_sockets.internal_upstream.v3 import internal_upstream_pb2
from envoy.type.metadata.v3 import metadata_pb2
from google.protobuf.message import Message

from penstock.envoy import accesslog, marks, names, states
from penstock.envoy.declared import declare, field
from penstock.envoy.protos import pack, seconds

_PACKAGE = "envoy.extensions.filters.listener.set_filter_state.v3"
_CLUSTER_STATE = "envoy.tcp_proxy.cluster"
_REMOTE_STATE = "envoy.filters.listener.original_dst.remote_ip"
"""Filter state by which Envoy is told a cluster, and whose a connection in user space is (its own keys)."""


_OnAccept = declare(
    _PACKAGE,
    {"Config": [field("on_accept", 1, value_pb2.FilterStateValue.DESCRIPTOR.full_name, repeated=True)]},
    value_pb2.DESCRIPTOR,
)["Config"]
"""Of the listener filter set_filter_state."""


def transport(own: base_pb2.TransportSocket) -> base_pb2.TransportSocket:
    """`own` TLS to the listener in user space, which is told what the endpoint says of itself."""
    source = internal_upstream_pb2.InternalUpstreamTransport.MetadataValueSource
    host = metadata_pb2.MetadataKind(host=metadata_pb2.MetadataKind.Host())
    told = (names.METADATA_ORIGINAL_DST, names.METADATA_OVER_MESH)
    config = internal_upstream_pb2.InternalUpstreamTransport(
        passthrough_metadata=[source(kind=host, name=name) for name in told], transport_socket=own
    )
    return base_pb2.TransportSocket(
        name="envoy.transport_sockets.internal_upstream", typed_config=pack(config)
    )


def _listener_filters(*, borrows: bool) -> list[components.ListenerFilter]:
    filters: list[tuple[str, Message]] = [("original_dst", original_dst_pb2.OriginalDst())]
    if borrows:
        client = f"%FILTER_STATE({names.CLIENT_SECRET_STATE}:PLAIN)%"
        # One of the two is no address, and is left out.
        said = [states.state(_REMOTE_STATE, _REMOTE_STATE, text) for text in (f"{client}:0", f"[{client}]:0")]
        filters = [
            ("set_filter_state", _OnAccept(on_accept=said)),
            *filters,
            ("original_src", original_src_pb2.OriginalSrc(mark=marks.UPSTREAM)),
        ]
    return [
        components.ListenerFilter(name=f"envoy.filters.listener.{name}", typed_config=pack(config))
        for name, config in filters
    ]


def borrowing() -> listener_pb2.Listener:
    """For what leaves with the client's address."""
    return _listener(names.OVER_MESH, borrows=True)


def own() -> listener_pb2.Listener:
    """For what leaves with the address that its cluster says."""
    return _listener(names.OVER_MESH_OWN, borrows=False)


def _listener(name: str, *, borrows: bool) -> listener_pb2.Listener:
    sni = names.UPSTREAM_SNI_STATE
    told = [
        states.state(
            _CLUSTER_STATE,
            _CLUSTER_STATE,
            f"%DYNAMIC_METADATA({names.METADATA_OVER_MESH}:{names.METADATA_CLUSTER})%",
        ),
        states.client_secret(f"%FILTER_STATE({names.CLIENT_SECRET_STATE}:PLAIN)%"),
        states.state(sni, sni, "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"),
    ]
    proxy = tcp_proxy_pb2.TcpProxy(
        stat_prefix=name,
        cluster=names.NO_BACKEND,
        idle_timeout=seconds(0),
        access_log=[accesslog.failed(name)],
    )
    chain = components.FilterChain(
        filters=[
            components.Filter(
                name="envoy.filters.network.set_filter_state",
                typed_config=pack(set_filter_state_pb2.Config(on_new_connection=told)),
            ),
            components.Filter(name="envoy.filters.network.tcp_proxy", typed_config=pack(proxy)),
        ]
    )
    return listener_pb2.Listener(
        name=name,
        stat_prefix=name,
        internal_listener=listener_pb2.Listener.InternalListenerConfig(),
        listener_filters=_listener_filters(borrows=borrows),
        filter_chains=[chain],
    )
