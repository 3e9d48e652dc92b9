"""The HTTP connection manager that all HTTP listeners share.

It leaves requests alone as far as HTTP lets a proxy: no x-forwarded-for, no own server or request-id
header, no time limits of its own; only x-forwarded-proto is added, which Envoy's router insists on. What
could turn a policy is dealt with: paths are normalised before anything looks at them, and no address is
internal, so that Envoy drops the headers (x-envoy-retry-on and the like) with which a client could steer
its router.
"""

from __future__ import annotations

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from envoy.config.core.v3 import base_pb2, protocol_pb2, substitution_format_string_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.header_to_metadata.v3 import header_to_metadata_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from penstock.envoy import accesslog, names, routes, treatments
from penstock.envoy.protos import ADS, extension, pack, seconds
from penstock.routing.model import ProxyListener

_TRUE = wrappers_pb2.BoolValue(value=True)
_FALSE = wrappers_pb2.BoolValue(value=False)
_Hcm = hcm_pb2.HttpConnectionManager

DENIED = "Access denied\r\n"


def http_filter(name: str, config: Message) -> hcm_pb2.HttpFilter:
    return hcm_pb2.HttpFilter(name=name, typed_config=pack(config))


def _early_mutation() -> header_mutation_pb2.HeaderMutation:
    """What happens to a request before anything looks at it: it is told which address was dialled."""
    overwrite = mutation_rules_pb2.HeaderMutation(append=routes.destination_header())
    return header_mutation_pb2.HeaderMutation(mutations=[overwrite])


def _local_reply() -> hcm_pb2.LocalReplyConfig:
    """Words Envoy's own 403 as the policy's denial. Local replies only: a backend's 403 passes untouched."""
    forbidden = accesslog_pb2.AccessLogFilter(
        status_code_filter=accesslog_pb2.StatusCodeFilter(
            comparison=accesslog_pb2.ComparisonFilter(
                op=accesslog_pb2.ComparisonFilter.Op.EQ,
                value=base_pb2.RuntimeUInt32(default_value=403, runtime_key="penstock.denied"),
            )
        )
    )
    grpc = accesslog_pb2.AccessLogFilter(
        header_filter=accesslog_pb2.HeaderFilter(
            header=route_components_pb2.HeaderMatcher(
                name="content-type", string_match=string_pb2.StringMatcher(prefix="application/grpc")
            )
        )
    )
    grpc_denied = accesslog_pb2.AccessLogFilter(and_filter=accesslog_pb2.AndFilter(filters=[forbidden, grpc]))
    # What a service that was asked, a token's check or a fault on purpose answers, it words itself.
    worded = accesslog_pb2.AccessLogFilter(
        response_flag_filter=accesslog_pb2.ResponseFlagFilter(flags=["UAEX", "FI"])
    )
    return hcm_pb2.LocalReplyConfig(
        mappers=[
            hcm_pb2.ResponseMapper(filter=worded),
            hcm_pb2.ResponseMapper(
                filter=grpc_denied, body=base_pb2.DataSource(inline_string=DENIED.strip())
            ),
            hcm_pb2.ResponseMapper(filter=forbidden, body=base_pb2.DataSource(inline_string=DENIED)),
        ],
        body_format=substitution_format_string_pb2.SubstitutionFormatString(
            text_format_source=base_pb2.DataSource(inline_string="%LOCAL_REPLY_BODY%")
        ),
    )


def base(listener: str, stat_prefix: str) -> hcm_pb2.HttpConnectionManager:
    """What all have in common, without routes and filters; its log goes by the name `listener`."""
    return _Hcm(
        stat_prefix=stat_prefix,
        codec_type=_Hcm.CodecType.AUTO,
        access_log=[accesslog.http(listener), accesslog.audit(listener)],
        early_header_mutation_extensions=[
            extension("envoy.http.early_header_mutation.header_mutation", _early_mutation())
        ],
        local_reply_config=_local_reply(),
        use_remote_address=_FALSE,
        internal_address_config=_Hcm.InternalAddressConfig(),
        skip_xff_append=True,
        generate_request_id=_FALSE,
        preserve_external_request_id=True,
        server_header_transformation=_Hcm.ServerHeaderTransformation.PASS_THROUGH,
        stream_idle_timeout=seconds(0),
        http_protocol_options=protocol_pb2.Http1ProtocolOptions(accept_http_10=True),
        upgrade_configs=[_Hcm.UpgradeConfig(upgrade_type="websocket")],
        normalize_path=_TRUE,
        merge_slashes=True,
        path_with_escaped_slashes_action=_Hcm.PathWithEscapedSlashesAction.UNESCAPE_AND_FORWARD,
    )


def router() -> hcm_pb2.HttpFilter:
    return http_filter(
        "envoy.filters.http.router", router_pb2.Router(suppress_envoy_headers=True, dynamic_stats=_FALSE)
    )


def by_service(listener: ProxyListener, stat_prefix: str) -> hcm_pb2.HttpConnectionManager:
    """Routes by the table of the virtual address that was dialled; an unknown one answers 404."""
    manager = base(listener.name, stat_prefix)
    builder = hcm_pb2.ScopedRoutes.ScopeKeyBuilder.FragmentBuilder
    extractor = builder.HeaderValueExtractor(name=names.DESTINATION_HEADER, index=0)
    manager.scoped_routes.CopyFrom(
        hcm_pb2.ScopedRoutes(
            name="services",
            scope_key_builder=hcm_pb2.ScopedRoutes.ScopeKeyBuilder(
                fragments=[builder(header_value_extractor=extractor)]
            ),
            rds_config_source=ADS,
            scoped_rds=hcm_pb2.ScopedRds(scoped_rds_config_source=ADS),
        )
    )
    manager.http_filters.extend(
        [http_filter(names.CORS_FILTER, cors_pb2.Cors()), *treatments.places(), router()]
    )
    return manager


def by_workload(listener: ProxyListener, stat_prefix: str) -> hcm_pb2.HttpConnectionManager:
    """Sends each request to exactly the address that was dialled."""
    manager = base(listener.name, stat_prefix)
    manager.rds.CopyFrom(
        hcm_pb2.Rds(config_source=ADS, route_config_name=names.workloads_table(listener.source_class))
    )
    config = header_to_metadata_pb2.Config
    rule = config.Rule(
        header=names.DESTINATION_HEADER,
        on_header_present=config.KeyValuePair(
            metadata_namespace=names.METADATA_LB,
            key=names.METADATA_ADDRESS,
            type=config.ValueType.STRING,
        ),
    )
    manager.http_filters.extend(
        [http_filter("envoy.filters.http.header_to_metadata", config(request_rules=[rule])), router()]
    )
    return manager
