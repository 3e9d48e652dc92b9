"""Listeners and tables of the edge. Envoy itself listens at a Gateway's addresses; nothing is steered there.

Towards backends a Gateway is one party, whoever the client was: the connection states the source class of
ingress and the certificate of the node's ingress, and leaves from the node's ingress address. The client's
address goes into x-forwarded-for. Tables are RDS like all others, so that rights and routes change under
open connections.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import chain

from envoy.config.core.v3 import address_pb2, protocol_pb2
from envoy.config.listener.v3 import listener_components_pb2 as components
from envoy.config.listener.v3 import listener_pb2, udp_listener_config_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.filters.network.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.filters.udp.udp_proxy.v3 import route_pb2 as udp_route_pb2
from envoy.extensions.filters.udp.udp_proxy.v3 import udp_proxy_pb2
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from penstock.envoy import (
    accesslog,
    edge_tls,
    http,
    listeners,
    marks,
    names,
    rbac,
    routes,
    states,
    treatments,
)
from penstock.envoy.protos import ADS, Joined, delimited, pack, seconds, socket_address, socket_option
from penstock.policy.labels import INGRESS
from penstock.routing.model import (
    EdgeListener,
    HostRoutes,
    HostTable,
    HttpChain,
    ProxyListener,
    TcpChain,
)

_HANDSHAKE_TIMEOUT = 10.0
_HEADERS_TIMEOUT = 30.0
"""Anybody may come to the edge, also one who never ends a request's headers."""

_TRUE = wrappers_pb2.BoolValue(value=True)

FORWARDED_BY_ENVOY = ("x-envoy-external-address", "x-envoy-internal")
"""What Envoy tells backends of clients beside x-forwarded-for."""


def _state(secrets: tuple[str, ...], client: int | None) -> components.Filter:
    """What a connection to the edge says about itself; `client` is the class of one that was steered."""
    values = [states.source_class(str(INGRESS)), states.client_secret(next(iter(secrets), names.NO_SECRET))]
    values += [states.state(names.EDGE6_STATE, "envoy.string", each) for each in secrets if ":" in each]
    if client is not None:
        values.append(states.state(names.CLIENT_CLASS_STATE, "envoy.string", str(client)))
    return components.Filter(
        name="envoy.filters.network.set_filter_state",
        typed_config=pack(set_filter_state_pb2.Config(on_new_connection=values)),
    )


def _manager(name: str, table: str, *, judged: bool) -> hcm_pb2.HttpConnectionManager:
    """`judged` puts a filter before all else that admits what the table's rules admit, else nothing."""
    made = http.base(name, "edge")
    made.use_remote_address.value = True
    made.skip_xff_append = False
    made.request_headers_timeout.CopyFrom(seconds(_HEADERS_TIMEOUT))
    made.http2_protocol_options.CopyFrom(protocol_pb2.Http2ProtocolOptions(allow_connect=True))
    made.rds.CopyFrom(hcm_pb2.Rds(config_source=ADS, route_config_name=table))
    if judged:
        made.http_filters.append(http.http_filter(names.ADMISSION_FILTER, rbac.admission(())))
        made.access_log.append(accesslog.audit(name, "envoy.filters.http.rbac"))
    made.http_filters.extend(
        [http.http_filter(names.CORS_FILTER, cors_pb2.Cors()), *treatments.places(), http.router()]
    )
    return made


def _tcp_proxy(name: str, each: TcpChain) -> components.Filter:
    """Shares of zero get nothing; the share of what cannot be used is closed: its cluster is not there."""
    made = tcp_proxy_pb2.TcpProxy(stat_prefix="edge", access_log=[accesslog.tcp(name)])
    shares = [backend for backend in each.backends if backend.weight > 0]
    if len(shares) < 2:
        made.cluster = (shares[0].cluster if shares else None) or names.NO_BACKEND
    else:
        for share in shares:
            made.weighted_clusters.clusters.add(name=share.cluster or names.NO_BACKEND, weight=share.weight)
    return components.Filter(name="envoy.filters.network.tcp_proxy", typed_config=pack(made))


def _stream(name: str, each: TcpChain, secrets: tuple[str, ...]) -> components.FilterChain:
    made = components.FilterChain(name=each.name, filters=[_state(secrets, None), _tcp_proxy(name, each)])
    if each.sni is not None:
        made.filter_chain_match.transport_protocol = "tls"
        if each.sni:
            made.filter_chain_match.server_names.append(each.sni)
    if each.tls is not None:
        made.transport_socket.CopyFrom(edge_tls.downstream(each.tls, ()))
        made.transport_socket_connect_timeout.CopyFrom(seconds(_HANDSHAKE_TIMEOUT))
    return made


def _chain(
    name: str, each: HttpChain | TcpChain, secrets: tuple[str, ...], client: int | None = None
) -> components.FilterChain:
    if isinstance(each, TcpChain):
        assert client is None, "a stream cannot be judged by L7 rules"
        return _stream(name, each, secrets)
    terminal = components.Filter(
        name="envoy.filters.network.http_connection_manager",
        typed_config=pack(_manager(name, each.table, judged=client is not None)),
    )
    made = components.FilterChain(name=each.table, filters=[_state(secrets, client), terminal])
    if each.tls is not None:
        if each.sni:
            made.filter_chain_match.server_names.append(each.sni)
        made.filter_chain_match.transport_protocol = "tls"
        made.transport_socket.CopyFrom(edge_tls.downstream(each.tls))
        made.transport_socket_connect_timeout.CopyFrom(seconds(_HANDSHAKE_TIMEOUT))
    return made


def _listener_filter(name: str, config: Message) -> components.ListenerFilter:
    return components.ListenerFilter(name=f"envoy.filters.listener.{name}", typed_config=pack(config))


def _inspectors(each: EdgeListener) -> list[components.ListenerFilter]:
    if all(
        chain.tls is None and not (isinstance(chain, TcpChain) and chain.sni is not None)
        for chain in each.chains
    ):
        return []
    return [_listener_filter("tls_inspector", tls_inspector_pb2.TlsInspector())]


def listener(each: EdgeListener, secrets: tuple[str, ...]) -> listener_pb2.Listener:
    """`secrets` are the certificates with which requests go on to other nodes.

    Transparent, so that it may be bound before the node has its addresses.
    """
    if each.protocol == "UDP":
        return _datagrams(each)
    first, *others = (socket_address(str(a), each.port) for a in each.addresses)
    return listener_pb2.Listener(
        name=each.name,
        stat_prefix="edge",
        address=first,
        additional_addresses=[listener_pb2.AdditionalAddress(address=a) for a in others],
        transparent=_TRUE,
        socket_options=[socket_option(1, 36, marks.EDGE, "SO_MARK")],
        listener_filters=_inspectors(each),
        filter_chains=[_chain(each.name, c, secrets) for c in each.chains],
    )


def steered(before: ProxyListener, each: EdgeListener, secrets: tuple[str, ...]) -> listener_pb2.Listener:
    """The same for what the kernel steers away from it, because an L7 rule names it: `before` says whose it
    is."""
    loopback = [socket_address(a, before.port) for a in ("127.0.0.1", "::1")]
    return listener_pb2.Listener(
        name=before.name,
        stat_prefix="edge",
        address=loopback[0],
        additional_addresses=[listener_pb2.AdditionalAddress(address=loopback[1])],
        transparent=_TRUE,
        socket_options=[socket_option(1, 36, marks.DOWNSTREAM, "SO_MARK")],
        listener_filters=[
            _listener_filter("original_dst", original_dst_pb2.OriginalDst()),
            *_inspectors(each),
        ],
        filter_chains=[
            listeners.dialled_directly(),
            *(_chain(before.name, c, secrets, before.source_class) for c in each.chains),
        ],
    )


def _datagrams(each: EdgeListener) -> listener_pb2.Listener:
    """Each client's datagrams go to one endpoint until it is silent for a minute."""
    first, *others = (socket_address(str(a), each.port) for a in each.addresses)
    for address in (first, *others):
        address.socket_address.protocol = address_pb2.SocketAddress.Protocol.UDP
    route = udp_route_pb2.Route(cluster=each.chains[0].backends[0].cluster or names.NO_BACKEND)  # type: ignore[union-attr]
    proxy = udp_proxy_pb2.UdpProxyConfig(stat_prefix="edge")
    proxy.matcher.on_no_match.action.name = "route"
    proxy.matcher.on_no_match.action.typed_config.CopyFrom(pack(route))
    return listener_pb2.Listener(
        name=each.name,
        stat_prefix="edge",
        address=first,
        additional_addresses=[listener_pb2.AdditionalAddress(address=a) for a in others],
        transparent=_TRUE,
        socket_options=[socket_option(1, 36, marks.DOWNSTREAM, "SO_MARK")],
        udp_listener_config=udp_listener_config_pb2.UdpListenerConfig(),
        listener_filters=[
            components.ListenerFilter(name="envoy.filters.udp_listener.udp_proxy", typed_config=pack(proxy))
        ],
    )


def _host(each: HostRoutes) -> route_components_pb2.VirtualHost:
    name = each.host or "*"
    made = route_components_pb2.VirtualHost(name=name, domains=[name])
    if each.misdirected:
        made.routes.add(
            name="misdirected",
            match=route_components_pb2.RouteMatch(prefix="/"),
            direct_response=route_components_pb2.DirectResponseAction(status=421),
        )
    else:
        made.routes.extend(chain.from_iterable(map(routes.compiled, each.routes)))
        treatments.configure(made, each.treatment)
    return made


@lru_cache(maxsize=16384)
def _host_bytes(each: HostRoutes) -> bytes:
    """As a field of the table. Kept: a table is put together anew whenever one of its hosts changes."""
    number = route_pb2.RouteConfiguration.VIRTUAL_HOSTS_FIELD_NUMBER
    return delimited(number, _host(each).SerializeToString(deterministic=True))


def table(each: HostTable) -> Joined:
    """A RouteConfiguration."""
    judges = {names.RIGHTS_FILTER: routes.rights(each.rights, each.audit)}
    if each.admission is not None:
        rules = rbac_pb2.RBACPerRoute(rbac=rbac.admission(each.admission, each.admission_audit))
        judges[names.ADMISSION_FILTER] = pack(rules)
    rest = route_pb2.RouteConfiguration(
        ignore_port_in_host_matching=True,
        request_headers_to_remove=[names.DESTINATION_HEADER, *FORWARDED_BY_ENVOY],
        typed_per_filter_config=judges,
    )
    return Joined(route_pb2.RouteConfiguration(name=each.name), map(_host_bytes, each.hosts), rest)
