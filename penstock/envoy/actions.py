"""What a route does besides choosing a backend, in Envoy's words.

All of it happens before the upstream filters, so that rights are judged on the request as the backend
gets it.
"""

from __future__ import annotations

import re

from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2 as components
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.retry.host.previous_hosts.v3 import previous_hosts_pb2
from envoy.type.matcher.v3 import regex_pb2, string_pb2
from google.protobuf import wrappers_pb2

from penstock.envoy import mirrors, rbac, traffic
from penstock.envoy.protos import pack, seconds
from penstock.routing.actions import Actions, Cors, HeaderChanges, PathChange, Redirect, Retry
from penstock.routing.model import StringMatch

_Append = base_pb2.HeaderValueOption.HeaderAppendAction
_Code = components.RedirectAction.RedirectResponseCode

_STATUS = {
    301: _Code.MOVED_PERMANENTLY,
    302: _Code.FOUND,
    303: _Code.SEE_OTHER,
    307: _Code.TEMPORARY_REDIRECT,
    308: _Code.PERMANENT_REDIRECT,
}

_RETRY_ON = "connect-failure,refused-stream,reset"
"""A backend that cannot be reached, and one that ends without an answer."""

_MOST_CHOICES = 5
"""Times that an endpoint is chosen anew for one that has failed this request; then it may be that one."""

_MOST_BACKOFF = 10
"""Times the least wait: Envoy's own proportion."""


def header_options(changes: HeaderChanges) -> list[base_pb2.HeaderValueOption]:
    """A percent sign would be a command to Envoy."""
    return [
        base_pb2.HeaderValueOption(
            header=base_pb2.HeaderValue(key=name, value=value.replace("%", "%%")),
            append_action=action,
            keep_empty_value=True,
        )
        for pairs, action in (
            (changes.set, _Append.OVERWRITE_IF_EXISTS_OR_ADD),
            (changes.add, _Append.APPEND_IF_EXISTS_OR_ADD),
        )
        for name, value in pairs
    ]


def change_headers(
    target: components.Route | components.WeightedCluster.ClusterWeight,
    request: HeaderChanges,
    response: HeaderChanges,
) -> None:
    target.request_headers_to_add.extend(header_options(request))
    target.request_headers_to_remove.extend(request.remove)
    target.response_headers_to_add.extend(header_options(response))
    target.response_headers_to_remove.extend(response.remove)


def _change_path(
    target: components.RouteAction | components.RedirectAction, change: PathChange, match: StringMatch
) -> None:
    """Whole segments: neither a doubled slash nor a lost one, whatever ends in one."""
    if change.kind == "full":
        if isinstance(target, components.RedirectAction):
            target.path_redirect = change.value
        else:
            target.regex_rewrite.CopyFrom(_substitute("^/.*$", change.value))
        return
    prefix, replacement = match.value.rstrip("/"), change.value.rstrip("/")
    if not prefix:
        target.prefix_rewrite = f"{replacement}/"
    elif replacement:
        target.prefix_rewrite = replacement
    else:
        target.regex_rewrite.CopyFrom(_substitute(f"^{re.escape(prefix)}/?", "/"))


def _substitute(pattern: str, replacement: str) -> regex_pb2.RegexMatchAndSubstitute:
    return regex_pb2.RegexMatchAndSubstitute(
        pattern=regex_pb2.RegexMatcher(regex=pattern), substitution=replacement.replace("\\", "\\\\")
    )


def redirect(action: Redirect, match: StringMatch, *, port: bool) -> components.RedirectAction:
    """`port` says whether Location names the port, even if it is the scheme's own."""
    made = components.RedirectAction(
        response_code=_STATUS[action.status],
        scheme_redirect=action.scheme or "",
        host_redirect=action.hostname or "",
        port_redirect=action.port if port else 0,
    )
    if action.path is not None:
        _change_path(made, action.path, match)
    return made


def _retry(retry: Retry | None, try_timeout: int | None) -> components.RetryPolicy:
    policy = components.RetryPolicy()
    if try_timeout is not None:
        policy.per_try_timeout.CopyFrom(seconds(try_timeout / 1000))
    if retry is not None:
        policy.retry_on = _RETRY_ON + (",retriable-status-codes" if retry.codes else "")
        policy.num_retries.CopyFrom(wrappers_pb2.UInt32Value(value=retry.attempts))
        policy.retriable_status_codes.extend(retry.codes)
        if retry.backoff is not None:
            policy.retry_back_off.base_interval.CopyFrom(seconds(retry.backoff / 1000))
            policy.retry_back_off.max_interval.CopyFrom(seconds(_MOST_BACKOFF * retry.backoff / 1000))
        other = policy.retry_host_predicate.add(name="previous_hosts")
        other.typed_config.CopyFrom(pack(previous_hosts_pb2.PreviousHostsPredicate()))
        policy.host_selection_retry_max_attempts = _MOST_CHOICES
    return policy


def act(target: components.RouteAction, actions: Actions, match: StringMatch) -> None:
    """Fills in how a request is sent on."""
    target.timeout.CopyFrom(seconds((actions.timeout or 0) / 1000))
    if actions.hostname is not None:
        target.host_rewrite_literal = actions.hostname
    if actions.path is not None:
        _change_path(target, actions.path, match)
    target.request_mirror_policies.extend(map(mirrors.policy, actions.mirrors))
    target.hash_policy.extend(traffic.hash_policies(actions.hashes))
    if actions.retry is not None or actions.try_timeout is not None:
        target.retry_policy.CopyFrom(_retry(actions.retry, actions.try_timeout))


def _origin(origin: str) -> string_pb2.StringMatcher:
    if origin == "*":
        return rbac.regex(".*")
    if "*" in origin:
        return rbac.regex("[^/]*".join(map(re.escape, origin.split("*"))))
    return string_pb2.StringMatcher(exact=origin)


def cors(policy: Cors) -> cors_pb2.CorsPolicy:
    """A preflight from an origin that is not named is answered without leave, and not passed on."""
    return cors_pb2.CorsPolicy(
        allow_origin_string_match=[_origin(origin) for origin in policy.origins],
        allow_methods=", ".join(policy.methods),
        allow_headers=", ".join(policy.headers),
        expose_headers=", ".join(policy.exposed),
        max_age=str(policy.max_age),
        allow_credentials=wrappers_pb2.BoolValue(value=policy.credentials),
        forward_not_matching_preflights=wrappers_pb2.BoolValue(value=False),
    )
