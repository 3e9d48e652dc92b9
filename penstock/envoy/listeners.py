"""Listeners: one per kind and source class. They say where connections come from; what those may do is
in the route tables, so that rules change under connections that are already open.

They serve only what the kernel steered. A connection that was dialled at the listener's own address has a
loopback destination and meets a filter chain without filters, which Envoy closes at once.
"""

from __future__ import annotations

from envoy.config.core.v3 import address_pb2
from envoy.config.listener.v3 import listener_components_pb2 as components
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.original_src.v3 import original_src_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from penstock.envoy import accesslog, http, marks, names, rbac, states, tls
from penstock.envoy.protos import pack, seconds, socket_address, socket_option
from penstock.routing.model import ListenerKind, ProxyListener

_SOL_SOCKET = 1
_SO_MARK = 36

_HANDSHAKE_TIMEOUT = 10.0
_EARLY_DATA = 1 << 16
_TLS_KINDS = (ListenerKind.TLS_HTTP, ListenerKind.TLS_TCP)

DIRECT_CHAIN = "direct"
"""The filter chain that closes."""


def _states(listener: ProxyListener) -> set_filter_state_pb2.Config:
    """What a connection says about itself: its class, and the name of its client certificate."""
    values = [
        states.source_class(str(listener.source_class)),
        states.client_secret("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%"),
    ]
    if listener.kind is ListenerKind.HTTP_SERVICE:
        values.append(states.state(names.SOURCE_NAMESPACE_STATE, "envoy.string", listener.namespace))
    if listener.kind is ListenerKind.TCP_MTLS:
        values.append(
            states.state(
                names.UPSTREAM_SNI_STATE, names.UPSTREAM_SNI_STATE, "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"
            )
        )
    return set_filter_state_pb2.Config(on_new_connection=values)


def _filter(name: str, config: Message) -> components.Filter:
    return components.Filter(name=name, typed_config=pack(config))


def _tcp_proxy(listener: ProxyListener, stat_prefix: str) -> tcp_proxy_pb2.TcpProxy:
    proxy = tcp_proxy_pb2.TcpProxy(
        stat_prefix=stat_prefix,
        idle_timeout=seconds(0),
        access_log=[accesslog.tcp(listener.name)],
    )
    if listener.kind is ListenerKind.TLS_TCP:
        proxy.cluster = names.ORIGINAL_DST
        # No connection to the backend for a client that has proven nothing. Envoy demands a bound with it.
        proxy.upstream_connect_mode = tcp_proxy_pb2.UpstreamConnectMode.ON_DOWNSTREAM_TLS_HANDSHAKE
        proxy.max_early_data_bytes.CopyFrom(wrappers_pb2.UInt32Value(value=_EARLY_DATA))
    else:
        proxy.cluster = names.mtls_cluster(listener.server_id or names.NO_SECRET)
    return proxy


def _terminal(listener: ProxyListener, stat_prefix: str) -> components.Filter:
    if listener.kind in (ListenerKind.TLS_TCP, ListenerKind.TCP_MTLS):
        return _filter("envoy.filters.network.tcp_proxy", _tcp_proxy(listener, stat_prefix))
    make = http.by_service if listener.kind is ListenerKind.HTTP_SERVICE else http.by_workload
    return _filter("envoy.filters.network.http_connection_manager", make(listener, stat_prefix))


def _served(listener: ProxyListener, stat_prefix: str) -> components.FilterChain:
    chain = components.FilterChain(name="steered")
    if listener.kind in _TLS_KINDS:
        assert listener.peer_id is not None
        chain.transport_socket.CopyFrom(tls.downstream(listener.peer_id))
        chain.transport_socket_connect_timeout.CopyFrom(seconds(_HANDSHAKE_TIMEOUT))
        chain.filters.append(_filter("envoy.filters.network.rbac", rbac.sni_is_destination()))
    chain.filters.append(_filter("envoy.filters.network.set_filter_state", _states(listener)))
    chain.filters.append(_terminal(listener, stat_prefix))
    return chain


def dialled_directly() -> components.FilterChain:
    loopback = [
        address_pb2.CidrRange(address_prefix=prefix, prefix_len=wrappers_pb2.UInt32Value(value=length))
        for prefix, length in (("127.0.0.0", 8), ("::1", 128))
    ]
    return components.FilterChain(
        name=DIRECT_CHAIN, filter_chain_match=components.FilterChainMatch(prefix_ranges=loopback)
    )


def _listener_filters(listener: ProxyListener) -> list[components.ListenerFilter]:
    filters: list[tuple[str, Message]] = [
        ("original_dst", original_dst_pb2.OriginalDst()),
        ("original_src", original_src_pb2.OriginalSrc(mark=marks.UPSTREAM)),
    ]
    if listener.kind in _TLS_KINDS:
        # Without it a network filter sees no SNI, though the TLS socket does.
        filters.append(("tls_inspector", tls_inspector_pb2.TlsInspector()))
    return [
        components.ListenerFilter(name=f"envoy.filters.listener.{name}", typed_config=pack(config))
        for name, config in filters
    ]


def listener(listener: ProxyListener) -> listener_pb2.Listener:
    stat_prefix = listener.kind.name.lower()
    return listener_pb2.Listener(
        name=listener.name,
        stat_prefix=stat_prefix,
        address=socket_address("127.0.0.1", listener.port),
        additional_addresses=[listener_pb2.AdditionalAddress(address=socket_address("::1", listener.port))],
        transparent=wrappers_pb2.BoolValue(value=True),
        socket_options=[socket_option(_SOL_SOCKET, _SO_MARK, marks.DOWNSTREAM, "SO_MARK")],
        listener_filters=_listener_filters(listener),
        filter_chains=[dialled_directly(), _served(listener, stat_prefix)],
        access_log=[accesslog.refused(listener.name)] if listener.kind in _TLS_KINDS else [],
    )
