"""Listeners that let TLS pass by its server name (SNI), and see nothing else of it.

The SNI is looked at before any filter chain is chosen: what no list has meets none, and is reset before a
byte of it, or a connection, goes anywhere. That is so for every connection without an SNI, plain text among
them. Envoy has the SNI in lower case, so case does not count; a dot at its end makes another name of it.

What comes over mesh TLS from another node hides the client's own TLS. There the mesh TLS ends first, and what
was inside goes on to a listener in user space, which looks at it as any other does. Where the connection
came from and was to go is told to that one by filter state, which nobody outside Envoy can set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2 as components
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.original_src.v3 import original_src_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2
from envoy.extensions.matching.common_inputs.network.v3 import network_inputs_pb2 as inputs
from envoy.extensions.transport_sockets.internal_upstream.v3 import internal_upstream_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message
from xds.core.v3 import extension_pb2
from xds.type.matcher.v3 import matcher_pb2, regex_pb2, string_pb2

from penstock.dns.patterns import Names
from penstock.envoy import accesslog, clusters, listeners, marks, names, rbac, states, tls
from penstock.envoy.protos import pack, seconds, socket_address, socket_option
from penstock.policy.server_names import expression
from penstock.routing.model import ListenerKind, ProxyListener

_PASSES, _TOLD = "steered", "told"
_LOOPBACK = r"127\..*|::1|::ffff:127\..*"
_HANDSHAKE_TIMEOUT = 10.0
_AUDIT_TIMEOUT = 1.0
"""Seconds that a policy in audit waits for the first bytes of a client who lets the server speak first."""

_LOCAL_STATE = "envoy.filters.listener.original_dst.local_ip"
_REMOTE_STATE = "envoy.filters.listener.original_dst.remote_ip"
"""Filter state by which original_dst tells the addresses of a connection in user space (Envoy's own keys)."""

_Predicate: TypeAlias = matcher_pb2.Matcher.MatcherList.Predicate


def inside(listener: ProxyListener) -> str:
    """The name of the listener, and of the cluster that leads there, for what was inside mesh TLS."""
    return f"{listener.name}/inside"


# --- which chain -------------------------------------------------------------------------------------------


def _typed(name: str, message: Message) -> extension_pb2.TypedExtensionConfig:
    return extension_pb2.TypedExtensionConfig(name=name, typed_config=pack(message))


def _full_match(what: Message, pattern: str) -> _Predicate:
    regex = regex_pb2.RegexMatcher(regex=pattern, google_re2=regex_pb2.RegexMatcher.GoogleRE2())
    return _Predicate(
        single_predicate=_Predicate.SinglePredicate(
            input=_typed(what.DESCRIPTOR.name, what),
            value_match=string_pb2.StringMatcher(safe_regex=regex),
        )
    )


def _all(predicates: Sequence[_Predicate]) -> _Predicate:
    if len(predicates) == 1:
        return predicates[0]
    return _Predicate(and_matcher=_Predicate.PredicateList(predicate=predicates))


def _to(chain: str) -> matcher_pb2.Matcher.OnMatch:
    return matcher_pb2.Matcher.OnMatch(action=_typed(chain, wrappers_pb2.StringValue(value=chain)))


def _chooser(lists: Sequence[Names], *, told: bool) -> matcher_pb2.Matcher:
    """The chain by the SNI, which must be in each of `lists`; with `told` all else has a chain too.

    What was dialled at the listener's own address gets none.
    """
    direct = _Predicate(not_matcher=_full_match(inputs.DestinationIPInput(), _LOOPBACK))
    named = [
        _full_match(inputs.ServerNameInput(), "|".join(f"({expression(each)})" for each in one))
        for one in lists
    ]
    field = matcher_pb2.Matcher.MatcherList.FieldMatcher
    ways = [field(predicate=_all([direct, *named]), on_match=_to(_PASSES))]
    if told:
        ways.append(field(predicate=direct, on_match=_to(_TOLD)))
    return matcher_pb2.Matcher(matcher_list=matcher_pb2.Matcher.MatcherList(matchers=ways))


# --- chains ------------------------------------------------------------------------------------------------


def _filter(name: str, config: Message) -> components.Filter:
    return components.Filter(name=f"envoy.filters.network.{name}", typed_config=pack(config))


def _proxy(log: str, cluster: str) -> components.Filter:
    made = tcp_proxy_pb2.TcpProxy(
        stat_prefix="names", cluster=cluster, idle_timeout=seconds(0), access_log=[accesslog.tcp(log)]
    )
    # Who is open under which name: an edit of the list resets only what it forbids (redirect/looked_at.py).
    made.access_log_options.flush_access_log_on_connected = True
    return _filter("tcp_proxy", made)


def _states(listener: ProxyListener, *, over_mesh: bool) -> components.Filter:
    values = [
        states.source_class(str(listener.source_class)),
        states.client_secret("%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"),
    ]
    if over_mesh:
        key = names.UPSTREAM_SNI_STATE
        values.append(states.state(key, key, "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%"))
    return _filter("set_filter_state", set_filter_state_pb2.Config(on_new_connection=values))


def _chains(listener: ProxyListener) -> list[components.FilterChain]:
    server_id = listener.server_id
    cluster = names.ORIGINAL_DST if server_id is None else names.mtls_cluster(server_id)
    first = _states(listener, over_mesh=server_id is not None)
    found = [components.FilterChain(name=_PASSES, filters=[first, _proxy(listener.name, cluster)])]
    if listener.kind is ListenerKind.NAMES_AUDIT:
        log = f"{accesslog.AUDIT}{listener.name}"
        found.append(components.FilterChain(name=_TOLD, filters=[first, _proxy(log, cluster)]))
    return found


def _listener_filters(listener: ProxyListener) -> list[components.ListenerFilter]:
    filters: list[tuple[str, Message]] = [("original_dst", original_dst_pb2.OriginalDst())]
    if listener.borrows:
        filters.append(("original_src", original_src_pb2.OriginalSrc(mark=marks.UPSTREAM)))
    filters.append(("tls_inspector", tls_inspector_pb2.TlsInspector()))
    return [
        components.ListenerFilter(name=f"envoy.filters.listener.{name}", typed_config=pack(config))
        for name, config in filters
    ]


def _looking(listener: ProxyListener, name: str) -> listener_pb2.Listener:
    lists = [each for each in (listener.outward, listener.inward) if each]
    told = listener.kind is ListenerKind.NAMES_AUDIT
    made = listener_pb2.Listener(
        name=name,
        stat_prefix=listener.kind.name.lower(),
        listener_filters=_listener_filters(listener),
        filter_chain_matcher=_chooser(lists, told=told),
        filter_chains=_chains(listener),
        access_log=[accesslog.no_name(name)],
    )
    if told:
        made.listener_filters_timeout.CopyFrom(seconds(_AUDIT_TIMEOUT))
        made.continue_on_listener_filters_timeout = True
    return made


# --- listeners ---------------------------------------------------------------------------------------------


def _steered(made: listener_pb2.Listener, port: int) -> listener_pb2.Listener:
    made.address.CopyFrom(socket_address("127.0.0.1", port))
    made.additional_addresses.add(address=socket_address("::1", port))
    made.transparent.value = True
    made.socket_options.append(socket_option(1, 36, marks.DOWNSTREAM, "SO_MARK"))
    return made


def listener(each: ProxyListener) -> listener_pb2.Listener:
    """What the kernel steers to."""
    if each.kind is not ListenerKind.TLS_NAMES:
        return _steered(_looking(each, each.name), each.port)
    assert each.peer_id is not None
    whose = [
        states.state(_LOCAL_STATE, _LOCAL_STATE, "%DOWNSTREAM_LOCAL_ADDRESS%"),
        states.state(_REMOTE_STATE, _REMOTE_STATE, "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS%"),
    ]
    proxy = tcp_proxy_pb2.TcpProxy(stat_prefix="names", cluster=inside(each), idle_timeout=seconds(0))
    # Nothing goes on of a client that has proven nothing.
    proxy.upstream_connect_mode = tcp_proxy_pb2.UpstreamConnectMode.ON_DOWNSTREAM_TLS_HANDSHAKE
    proxy.max_early_data_bytes.CopyFrom(wrappers_pb2.UInt32Value(value=1 << 16))
    chain = components.FilterChain(
        name=_PASSES,
        transport_socket=tls.downstream(each.peer_id),
        transport_socket_connect_timeout=seconds(_HANDSHAKE_TIMEOUT),
        filters=[
            _filter("rbac", rbac.sni_is_destination()),
            _filter("set_filter_state", set_filter_state_pb2.Config(on_new_connection=whose)),
            _filter("tcp_proxy", proxy),
        ],
    )
    filters: list[tuple[str, Message]] = [
        ("original_dst", original_dst_pb2.OriginalDst()),
        ("tls_inspector", tls_inspector_pb2.TlsInspector()),
    ]
    made = listener_pb2.Listener(
        name=each.name,
        stat_prefix=each.kind.name.lower(),
        listener_filters=[
            components.ListenerFilter(name=f"envoy.filters.listener.{name}", typed_config=pack(config))
            for name, config in filters
        ],
        filter_chains=[listeners.dialled_directly(), chain],
        access_log=[accesslog.refused(each.name)],
    )
    return _steered(made, each.port)


def inner_listener(each: ProxyListener) -> listener_pb2.Listener:
    """Where the TLS is looked at that was inside mesh TLS."""
    made = _looking(each, inside(each))
    made.internal_listener.SetInParent()
    return made


def inner_cluster(each: ProxyListener) -> cluster_pb2.Cluster:
    """The way there."""
    name = inside(each)
    address = address_pb2.Address(
        envoy_internal_address=address_pb2.EnvoyInternalAddress(server_listener_name=name)
    )
    endpoint = endpoint_components_pb2.LbEndpoint(endpoint=endpoint_components_pb2.Endpoint(address=address))
    wrapped = base_pb2.TransportSocket(
        name="envoy.transport_sockets.raw_buffer", typed_config=pack(raw_buffer_pb2.RawBuffer())
    )
    return cluster_pb2.Cluster(
        name=name,
        type=cluster_pb2.Cluster.DiscoveryType.STATIC,
        connect_timeout=seconds(1),
        circuit_breakers=clusters.unlimited(),
        transport_socket=base_pb2.TransportSocket(
            name="envoy.transport_sockets.internal_upstream",
            typed_config=pack(internal_upstream_pb2.InternalUpstreamTransport(transport_socket=wrapped)),
        ),
        load_assignment=endpoint_pb2.ClusterLoadAssignment(
            cluster_name=name,
            endpoints=[endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[endpoint])],
        ),
    )
