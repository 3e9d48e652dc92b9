"""Rights as Envoy RBAC, judged in an upstream filter: for the chosen endpoint, on the request as it gets it.

The action is ALLOW and nothing else, so that whatever cannot be evaluated denies. The source class is a
principal (filter state), never CEL: CEL reads that filter state as absent, without an error.
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3 import cel_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2 as route_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2
from envoy.type.matcher.v3 import filter_state_pb2, regex_pb2, string_pb2

from penstock.envoy import cel
from penstock.envoy.names import CLIENT_CLASS_STATE, METADATA, METADATA_CLASS, SOURCE_CLASS_STATE
from penstock.routing.model import RequestMatch, Rights

_ANY = rbac_pb2.Permission(any=True)


def regex(pattern: str) -> string_pb2.StringMatcher:
    """RE2, matched in full."""
    return string_pb2.StringMatcher(safe_regex=regex_pb2.RegexMatcher(regex=pattern))


def _header(name: str, matcher: string_pb2.StringMatcher | None) -> rbac_pb2.Permission:
    if matcher is None:
        return rbac_pb2.Permission(header=route_pb2.HeaderMatcher(name=name, present_match=True))
    return rbac_pb2.Permission(header=route_pb2.HeaderMatcher(name=name, string_match=matcher))


def _all(permissions: list[rbac_pb2.Permission]) -> rbac_pb2.Permission:
    if not permissions:
        return _ANY
    if len(permissions) == 1:
        return permissions[0]
    return rbac_pb2.Permission(and_rules=rbac_pb2.Permission.Set(rules=permissions))


def _any(permissions: list[rbac_pb2.Permission]) -> rbac_pb2.Permission:
    if len(permissions) == 1:
        return permissions[0]
    return rbac_pb2.Permission(or_rules=rbac_pb2.Permission.Set(rules=permissions))


def _request(match: RequestMatch) -> rbac_pb2.Permission:
    wanted = ((":method", match.method), (":path", match.path), (":authority", match.host))
    permissions = [_header(name, regex(pattern)) for name, pattern in wanted if pattern is not None]
    for name, value in match.headers:
        exact = None if value is None else string_pb2.StringMatcher(exact=value)
        permissions.append(_header(name, exact))
    return _all(permissions)


def _principals(sources: tuple[int, ...] | None, key: str = SOURCE_CLASS_STATE) -> list[rbac_pb2.Principal]:
    if sources is None:
        return [rbac_pb2.Principal(any=True)]
    return [
        rbac_pb2.Principal(
            filter_state=filter_state_pb2.FilterStateMatcher(
                key=key, string_match=string_pb2.StringMatcher(exact=str(source))
            )
        )
        for source in sorted(set(sources))
    ]


def policy(rights: Rights) -> rbac_pb2.Policy | None:
    """One Rights as a policy; None if it can allow nothing (an empty list selects nothing)."""
    if rights.sources == () or not rights.destinations or () in rights.requests:
        return None
    groups = [_any([_request(match) for match in group]) for group in rights.requests]
    endpoint_class = cel.index(
        cel.index(cel.attribute("xds.upstream_host_metadata.filter_metadata"), METADATA), METADATA_CLASS
    )
    return rbac_pb2.Policy(
        permissions=[_all(groups)],
        principals=_principals(rights.sources),
        condition=cel.numbered(cel.one_of(endpoint_class, sorted(set(rights.destinations)))),
    )


def _allowing(rights: Iterable[Rights]) -> rbac_pb2.RBAC:
    policies = {}
    for number, item in enumerate(dict.fromkeys(rights)):
        if (made := policy(item)) is not None:
            policies[f"{number:05}"] = made
    return rbac_pb2.RBAC(action=rbac_pb2.RBAC.Action.ALLOW, policies=policies)


def rules(rights: Iterable[Rights], audit: Iterable[Rights] | None = None) -> http_rbac_pb2.RBAC:
    """What a route table's requests may do, and what they might if policies in audit were enforced (None:
    the same). No rights deny everything; what only `audit` denies is logged (accesslog.audit)."""
    made = http_rbac_pb2.RBAC(rules=_allowing(rights))
    if audit is not None:
        made.shadow_rules.CopyFrom(_allowing(audit))
    return made


def admission(rights: Iterable[Rights], audit: Iterable[Rights] | None = None) -> http_rbac_pb2.RBAC:
    """What the clients of a Gateway may send to it, and what they might (as `rules`). No rights deny
    everything."""
    made = http_rbac_pb2.RBAC(rules=_admitting(rights))
    if audit is not None:
        made.shadow_rules.CopyFrom(_admitting(audit))
    return made


def _admitting(rights: Iterable[Rights]) -> rbac_pb2.RBAC:
    policies = {}
    for number, item in enumerate(dict.fromkeys(rights)):
        if item.sources != () and () not in item.requests:
            groups = [_any([_request(match) for match in group]) for group in item.requests]
            principals = _principals(item.sources, CLIENT_CLASS_STATE)
            policies[f"{number:05}"] = rbac_pb2.Policy(permissions=[_all(groups)], principals=principals)
    return rbac_pb2.RBAC(action=rbac_pb2.RBAC.Action.ALLOW, policies=policies)


def sni_is_destination() -> network_rbac_pb2.RBAC:
    """Lets a TLS connection pass only if the name in its SNI is the address that was dialled.

    Envoy judges with the first bytes from the client. Where the server speaks first, its first bytes may
    pass before: to a client that has proven its identity, but dialled another name.
    """
    destination = cel.attribute("destination.address")
    name = cel.attribute("connection.requested_server_name")
    condition = cel.either(
        cel.starts_with(destination, cel.concat(name, cel.const(":"))),
        cel.starts_with(destination, cel.concat(cel.const("["), name, cel.const("]:"))),
    )
    only = rbac_pb2.Policy(
        permissions=[_ANY],
        principals=[rbac_pb2.Principal(any=True)],
        condition=cel.numbered(condition),
        cel_config=cel_pb2.CelExpressionConfig(enable_string_concat=True),
    )
    return network_rbac_pb2.RBAC(
        stat_prefix="sni.",
        rules=rbac_pb2.RBAC(action=rbac_pb2.RBAC.Action.ALLOW, policies={"sni": only}),
    )
