"""What policies do with requests besides routing them, as Envoy's HTTP filters.

Each part has a place of its own in every connection manager: a filter that holds no filters, and is disabled.
A route, or a table of routes, fills it. So everything is in RDS and holds for the next request on a
connection that is open already, and of two places that fill the same part the more specific one counts.

The order: what is to be broken on purpose; limits, before anybody is asked anything; who it is; whether he
may; and then what concerns only the answer, and the endpoint. Rights are judged after all of it, for the
endpoint that was chosen.
"""

from __future__ import annotations

from collections.abc import Iterator

from envoy.config.core.v3 import base_pb2, grpc_service_pb2, http_uri_pb2
from envoy.config.route.v3 import route_components_pb2 as components
from envoy.extensions.compression.brotli.compressor.v3 import brotli_pb2
from envoy.extensions.compression.gzip.compressor.v3 import gzip_pb2
from envoy.extensions.compression.zstd.compressor.v3 import zstd_pb2
from envoy.extensions.filters.http.compressor.v3 import compressor_pb2
from envoy.extensions.filters.http.ext_authz.v3 import ext_authz_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from envoy.extensions.filters.http.jwt_authn.v3 import config_pb2 as jwt_pb2
from envoy.extensions.filters.http.local_ratelimit.v3 import local_rate_limit_pb2
from envoy.extensions.filters.http.stateful_session.v3 import stateful_session_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import (
    http_connection_manager_pb2 as hcm_pb2,
)
from envoy.extensions.http.stateful_session.cookie.v3 import cookie_pb2
from envoy.extensions.http.stateful_session.header.v3 import header_pb2
from envoy.type.matcher.v3 import string_pb2
from envoy.type.v3 import percent_pb2
from google.protobuf.message import Message

from penstock.envoy import names
from penstock.envoy.filter_chain import FilterChainConfig, FilterChainPerRoute
from penstock.envoy.protos import extension, pack, seconds
from penstock.routing.treatment import (
    Compression,
    ExternalAuth,
    Fault,
    Jwt,
    JwtProvider,
    RateLimit,
    Session,
    Treatment,
)

FAULT, LIMIT, JWT, AUTH = "penstock.fault", "penstock.rate-limit", "penstock.jwt", "penstock.ext-auth"
COMPRESSION, SESSION = "penstock.compression", "penstock.session"
ORDER = (FAULT, LIMIT, JWT, AUTH, COMPRESSION, SESSION)

_ASK_TIMEOUT = 2.0
"""Seconds in which a service that is asked must answer."""

_MOST = (1 << 32) - 1
_MOST_CLIENTS = 4096
"""Clients that a limit counts by themselves; beyond it the one longest unseen begins anew."""

_WHO = {
    "Identity": f"%FILTER_STATE({names.SOURCE_CLASS_STATE}:PLAIN)%",
    "Address": "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
}
_HUNDRED = percent_pb2.FractionalPercent(numerator=100)


def places() -> list[hcm_pb2.HttpFilter]:
    """The filters of a connection manager that routes may fill."""
    empty = pack(FilterChainConfig())
    return [hcm_pb2.HttpFilter(name=name, disabled=True, typed_config=empty) for name in ORDER]


def configure(target: components.Route | components.VirtualHost, treatment: Treatment | None) -> None:
    """Fills the places for the requests of `target`."""
    if treatment is None:
        return
    for name, filters in _parts(treatment):
        chain = FilterChainPerRoute()
        chain.filter_chain.filters.extend(extension(kind, config) for kind, config in filters)
        target.typed_per_filter_config[name].CopyFrom(pack(chain))


_Filters = list[tuple[str, Message]]


def _parts(treatment: Treatment) -> Iterator[tuple[str, _Filters]]:
    if treatment.fault is not None:
        yield FAULT, [("envoy.filters.http.fault", _fault(treatment.fault))]
    if treatment.limit is not None:
        yield LIMIT, _limit(treatment.limit)
    if treatment.jwt is not None:
        yield JWT, [_jwt(treatment.jwt)]
    if treatment.auth is not None:
        yield AUTH, [_auth(treatment.auth)]
    if treatment.compression is not None:
        yield COMPRESSION, _compressors(treatment.compression)
    if treatment.session is not None:
        yield SESSION, [("envoy.filters.http.stateful_session", _session(treatment.session))]


def _percent(value: int) -> percent_pb2.FractionalPercent:
    return percent_pb2.FractionalPercent(numerator=value)


def _fault(fault: Fault) -> fault_pb2.HTTPFault:
    made = fault_pb2.HTTPFault()
    if fault.delay:
        made.delay.fixed_delay.CopyFrom(seconds(fault.delay / 1000))
        made.delay.percentage.CopyFrom(_percent(fault.delay_percent))
    if fault.http_status is not None:
        made.abort.http_status = fault.http_status
    if fault.grpc_status is not None:
        made.abort.grpc_status = fault.grpc_status
    if fault.http_status is not None or fault.grpc_status is not None:
        made.abort.percentage.CopyFrom(_percent(fault.abort_percent))
    return made


def _closed() -> tuple[str, Message]:
    """Answers everything by itself: what ought to be checked cannot be."""
    return "envoy.filters.http.fault", _fault(Fault(http_status=500))


def _limit(limit: RateLimit) -> _Filters:
    """What tells clients apart stands in a header just while the limit looks at it: its descriptors know
    neither filter state nor an address that no header can forge."""
    filters: _Filters = [("envoy.filters.http.local_ratelimit", _buckets(limit))]
    if limit.per == "Target":
        return filters
    told, forgotten = header_mutation_pb2.HeaderMutation(), header_mutation_pb2.HeaderMutation()
    option = told.mutations.request_mutations.add().append
    option.header.key, option.header.value = names.CLIENT_HEADER, _WHO[limit.per]
    option.append_action = base_pb2.HeaderValueOption.HeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    forgotten.mutations.request_mutations.add().remove = names.CLIENT_HEADER
    mutation = "envoy.filters.http.header_mutation"
    return [(mutation, told), *filters, (mutation, forgotten)]


def _buckets(limit: RateLimit) -> local_rate_limit_pb2.LocalRateLimit:
    made = local_rate_limit_pb2.LocalRateLimit(stat_prefix="limit", rate_limited_as_resource_exhausted=True)
    made.filter_enabled.default_value.CopyFrom(_HUNDRED)
    made.filter_enforced.default_value.CopyFrom(_HUNDRED)
    bucket = made.token_bucket
    if limit.per != "Target":
        # Everybody has a bucket of his own; the common one is never empty.
        made.always_consume_default_token_bucket.value = False
        made.max_dynamic_descriptors.value = _MOST_CLIENTS
        client = made.rate_limits.add().actions.add().request_headers
        client.header_name, client.descriptor_key = names.CLIENT_HEADER, "client"
        descriptor = made.descriptors.add()
        descriptor.entries.add(key="client")
        bucket.max_tokens = _MOST
        bucket.tokens_per_fill.value = _MOST
        bucket.fill_interval.CopyFrom(seconds(1))
        bucket = descriptor.token_bucket
    bucket.max_tokens = limit.burst
    bucket.tokens_per_fill.value = limit.requests
    bucket.fill_interval.CopyFrom(seconds(limit.interval / 1000))
    return made


def _jwt(jwt: Jwt) -> tuple[str, Message]:
    if not jwt.providers:
        return _closed()
    made = jwt_pb2.JwtAuthentication(bypass_cors_preflight=True)
    for each in jwt.providers:
        made.providers[each.name].CopyFrom(_provider(each))
    rule = made.rules.add()
    rule.match.prefix = "/"
    options = [jwt_pb2.JwtRequirement(provider_name=each.name) for each in jwt.providers]
    if jwt.optional:
        options.append(jwt_pb2.JwtRequirement(allow_missing={}))
    if len(options) == 1:
        rule.requires.CopyFrom(options[0])
    else:
        rule.requires.requires_any.requirements.extend(options)
    return "envoy.filters.http.jwt_authn", made


def _provider(provider: JwtProvider) -> jwt_pb2.JwtProvider:
    """By its header alone: in a query a token would end up in logs."""
    made = jwt_pb2.JwtProvider(
        issuer=provider.issuer,
        audiences=provider.audiences,
        forward=provider.forward,
        claim_to_headers=[
            jwt_pb2.JwtClaimToHeader(claim_name=claim, header_name=header)
            for claim, header in provider.claims
        ],
    )
    if provider.header is None:
        made.from_headers.add(name="Authorization", value_prefix="Bearer ")
    else:
        made.from_headers.add(name=provider.header)
    if provider.keys is not None:
        made.local_jwks.inline_string = provider.keys
    else:
        made.remote_jwks.http_uri.CopyFrom(_uri(provider.uri, provider.cluster))
        made.remote_jwks.cache_duration.CopyFrom(seconds(provider.cache / 1000))
        # Else each of Envoy's threads would fetch for itself, while a request waits.
        made.remote_jwks.async_fetch.fast_listener = True
        made.remote_jwks.async_fetch.failed_refetch_duration.CopyFrom(seconds(1))
    return made


def _uri(uri: str, cluster: str) -> http_uri_pb2.HttpUri:
    return http_uri_pb2.HttpUri(uri=uri, cluster=cluster, timeout=seconds(_ASK_TIMEOUT))


def _auth(auth: ExternalAuth) -> tuple[str, Message]:
    """Its word may add headers, but not change the route that was chosen before."""
    if auth.cluster is None:
        return _closed()
    made = ext_authz_pb2.ExtAuthz(transport_api_version="V3", stat_prefix="auth")
    if auth.grpc:
        grpc = grpc_service_pb2.GrpcService(timeout=seconds(_ASK_TIMEOUT))
        grpc.envoy_grpc.cluster_name = auth.cluster
        grpc.envoy_grpc.authority = auth.authority
        made.grpc_service.CopyFrom(grpc)
    else:
        made.http_service.server_uri.CopyFrom(_uri(f"http://{auth.authority}", auth.cluster))
        made.http_service.path_prefix = auth.path
        if auth.taken:
            answer = made.http_service.authorization_response.allowed_upstream_headers
            answer.patterns.extend(_names(auth.taken))
    if auth.headers:
        made.allowed_headers.patterns.extend(_names(auth.headers))
    if auth.body:
        # A body that is longer answers 413: what the service does not see, it cannot have allowed.
        made.with_request_body.max_request_bytes = auth.body
    return "envoy.filters.http.ext_authz", made


def _names(headers: tuple[str, ...]) -> list[string_pb2.StringMatcher]:
    return [string_pb2.StringMatcher(exact=name, ignore_case=True) for name in headers]


_LIBRARIES: dict[str, tuple[str, Message]] = {
    "gzip": ("envoy.compression.gzip.compressor", gzip_pb2.Gzip()),
    "brotli": ("envoy.compression.brotli.compressor", brotli_pb2.Brotli()),
    "zstd": ("envoy.compression.zstd.compressor", zstd_pb2.Zstd()),
}


def _compressors(compression: Compression) -> _Filters:
    """One for each type; which of them acts follows from what the client prefers (RFC 9110, 12.5.3)."""
    found: _Filters = []
    for kind in compression.types:
        made = compressor_pb2.Compressor(compressor_library=extension(*_LIBRARIES[kind]))
        common = made.response_direction_config.common_config
        common.min_content_length.value = compression.min_size
        common.content_type.extend(compression.content_types)
        found.append(("envoy.filters.http.compressor", made))
    return found


def _session(session: Session) -> stateful_session_pb2.StatefulSession:
    """An endpoint that is gone, or not healthy, is replaced; what the client sends chooses among those of the
    cluster alone."""
    state: Message
    if session.kind == "Cookie":
        state = cookie_pb2.CookieBasedSessionState()
        state.cookie.name = session.name
        state.cookie.path = "/"
        state.cookie.ttl.CopyFrom(seconds(session.ttl / 1000))
    else:
        state = header_pb2.HeaderBasedSessionState(name=session.name.lower())
    kind = session.kind.lower()
    return stateful_session_pb2.StatefulSession(
        session_state=extension(f"envoy.http.stateful_session.{kind}", state)
    )
