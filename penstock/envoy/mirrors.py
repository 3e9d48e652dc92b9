"""Copies of requests (mirrors), and how policy gets to judge them.

Envoy sends a copy by a client of its own, which knows nothing of the connection that the request came by:
neither the source class nor the client's address, and no rights of the route. So every copy takes a second
way through Envoy, to a listener in user space that nothing outside Envoy can dial. The copy says in headers
whose it is and where it is to go; there they become filter state and source address, and the endpoint that
is chosen is judged as it is for any request of that client.
"""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2 as components
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.original_src.v3 import original_src_pb2
from envoy.extensions.filters.http.set_filter_state.v3 import set_filter_state_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.http.original_ip_detection.custom_header.v3 import custom_header_pb2
from envoy.type.v3 import percent_pb2

from penstock.envoy import clusters, http, marks, names, routes, states
from penstock.envoy.protos import ADS, extension, pack, seconds
from penstock.routing.actions import Mirror
from penstock.routing.model import Rights

_MILLION = 1_000_000

TIMEOUT = 30.0
"""Seconds that a copy may take: nobody waits for its answer, so nobody else would end it."""

_HEADERS = (names.MIRROR_CLUSTER_HEADER, names.MIRROR_CLASS_HEADER, names.MIRROR_CLIENT_HEADER)


def _overwrite(name: str, value: str) -> mutation_rules_pb2.HeaderMutation:
    return mutation_rules_pb2.HeaderMutation(
        append=base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=name, value=value),
            append_action=base_pb2.HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        )
    )


def policy(mirror: Mirror) -> components.RouteAction.RequestMirrorPolicy:
    """What a route says to have its requests copied."""
    client = names.EDGE6_STATE if mirror.edge6 else names.CLIENT_SECRET_STATE
    made = components.RouteAction.RequestMirrorPolicy(
        cluster=names.MIRRORS,
        disable_shadow_host_suffix_append=True,
        request_headers_mutations=[
            _overwrite(names.MIRROR_CLUSTER_HEADER, mirror.cluster),
            _overwrite(names.MIRROR_CLASS_HEADER, f"%FILTER_STATE({names.SOURCE_CLASS_STATE}:PLAIN)%"),
            _overwrite(names.MIRROR_CLIENT_HEADER, f"%FILTER_STATE({client}:PLAIN)%"),
        ],
    )
    share = percent_pb2.FractionalPercent(
        numerator=round(_MILLION * mirror.numerator / mirror.denominator),
        denominator=percent_pb2.FractionalPercent.DenominatorType.MILLION,
    )
    made.runtime_fraction.CopyFrom(base_pb2.RuntimeFractionalPercent(default_value=share))
    return made


def _address() -> address_pb2.Address:
    return address_pb2.Address(
        envoy_internal_address=address_pb2.EnvoyInternalAddress(server_listener_name=names.MIRRORS)
    )


def cluster() -> cluster_pb2.Cluster:
    """The way to the listener. HTTP/2: one stream for each copy, on few connections."""
    endpoint = endpoint_components_pb2.LbEndpoint(
        endpoint=endpoint_components_pb2.Endpoint(address=_address())
    )
    return cluster_pb2.Cluster(
        name=names.MIRRORS,
        type=cluster_pb2.Cluster.DiscoveryType.STATIC,
        connect_timeout=seconds(1),
        load_assignment=endpoint_pb2.ClusterLoadAssignment(
            cluster_name=names.MIRRORS,
            endpoints=[endpoint_components_pb2.LocalityLbEndpoints(lb_endpoints=[endpoint])],
        ),
        circuit_breakers=clusters.unlimited(),
        typed_extension_protocol_options={clusters.HTTP_OPTIONS: pack(clusters.http2_without_filters())},
    )


def listener() -> listener_pb2.Listener:
    """Makes of the headers of a copy what a connection of the client would state by itself."""
    manager = http.base(names.MIRRORS, names.MIRRORS)
    manager.rds.CopyFrom(hcm_pb2.Rds(config_source=ADS, route_config_name=names.MIRRORS))
    manager.original_ip_detection_extensions.append(
        extension(
            "envoy.http.original_ip_detection.custom_header",
            custom_header_pb2.CustomHeaderConfig(header_name=names.MIRROR_CLIENT_HEADER),
        )
    )
    whose = set_filter_state_pb2.Config(
        on_request_headers=[
            states.source_class(f"%REQ({names.MIRROR_CLASS_HEADER})%"),
            states.client_secret(f"%REQ({names.MIRROR_CLIENT_HEADER})%"),
        ]
    )
    manager.http_filters.extend(
        [
            http.http_filter("envoy.filters.http.set_filter_state", whose),
            http.http_filter(
                "envoy.filters.http.original_src", original_src_pb2.OriginalSrc(mark=marks.UPSTREAM)
            ),
            http.router(),
        ]
    )
    chain = listener_components_pb2.FilterChain(
        filters=[
            listener_components_pb2.Filter(
                name="envoy.filters.network.http_connection_manager", typed_config=pack(manager)
            )
        ]
    )
    return listener_pb2.Listener(
        name=names.MIRRORS,
        stat_prefix=names.MIRRORS,
        internal_listener=listener_pb2.Listener.InternalListenerConfig(),
        filter_chains=[chain],
    )


def table(
    rights: tuple[Rights, ...], audit: tuple[Rights, ...] | None = None
) -> route_pb2.RouteConfiguration:
    """Each copy goes where it says. `rights` are those of all endpoints that copies go to."""
    action = components.RouteAction(cluster_header=names.MIRROR_CLUSTER_HEADER, timeout=seconds(TIMEOUT))
    route = components.Route(name=names.MIRRORS, match=components.RouteMatch(prefix="/"), route=action)
    made = routes.table(names.MIRRORS, [route], rights, audit)
    made.request_headers_to_remove.extend(_HEADERS)
    return made
