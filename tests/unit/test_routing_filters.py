"""Filters, timeouts and retries: what a manifest says, and what the neutral model says then."""

from __future__ import annotations

import pytest
from test_manifests_checks import only, said
from test_routing_mesh import PEOPLE, _table, route
from worlds import make

from penstock.routing.actions import (
    NO_ACTIONS,
    Actions,
    Cors,
    HeaderChanges,
    Mirror,
    PathChange,
    Redirect,
    Retry,
)
from penstock.routing.filters import milliseconds


def actions(rule: str) -> Actions:
    _, plan = make(PEOPLE + route(f"[{{{rule}}}]"))
    return _table(plan).routes[0].actions


def test_nothing_said_is_nothing_done() -> None:
    assert actions("backendRefs: [{name: v1, port: 80}]") == NO_ACTIONS
    assert actions("timeouts: {request: 0s, backendRequest: 0s}") == NO_ACTIONS


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("10s", 10_000), ("500ms", 500), ("1h2m3s4ms", 3_723_004), ("0s", None), (None, None)],
)
def test_durations(text: str | None, wanted: int | None) -> None:
    assert milliseconds(text) == wanted


def test_filters_become_actions() -> None:
    rule = """
      matches: [{path: {value: /a}}],
      filters: [
        {type: RequestHeaderModifier, requestHeaderModifier:
          {set: [{name: X-A, value: '1'}], add: [{name: B, value: '2'}], remove: [C]}},
        {type: ResponseHeaderModifier, responseHeaderModifier: {remove: [Server]}},
        {type: URLRewrite, urlRewrite:
          {hostname: h.x, path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}},
        {type: CORS, cors: {allowOrigins: ['*']}}],
      timeouts: {request: 2s, backendRequest: 500ms},
      retry: {codes: [500, 503], attempts: 3, backoff: 20ms},
      backendRefs: [{name: v1, port: 80}]"""
    assert actions(rule) == Actions(
        request=HeaderChanges((("x-a", "1"),), (("b", "2"),), ("c",)),
        response=HeaderChanges(remove=("server",)),
        hostname="h.x",
        path=PathChange("prefix", "/b"),
        cors=Cors(("*",), (), (), (), 5, False),
        timeout=2000,
        try_timeout=500,
        retry=Retry((500, 503), 3, 20),
    )


@pytest.mark.parametrize(
    ("said_", "port", "named"),
    [("", 80, False), ("scheme: https", 443, False), ("port: 8080", 8080, True), ("scheme: http", 80, False)],
)
def test_the_port_of_a_redirect(said_: str, port: int, named: bool) -> None:
    found = actions(f"filters: [{{type: RequestRedirect, requestRedirect: {{{said_}}}}}]").redirect
    assert found is not None
    assert (found.status, found.port, found.names_port) == (302, port, named)


def test_without_a_scheme_a_redirect_names_the_port_that_was_dialled() -> None:
    path = "{type: ReplaceFullPath, replaceFullPath: /x}"
    rule = f"[{{filters: [{{type: RequestRedirect, requestRedirect: {{path: {path}}}}}]}}]"
    _, plan = make(PEOPLE + route(rule, parent="{group: '', kind: Service, name: v1, port: 81}"))
    found = _table(plan, "default/v1:81/4").routes[0].actions
    assert found.redirect == Redirect(302, 81, path=PathChange("full", "/x"))


def test_the_filters_of_a_backend_are_its_own() -> None:
    rule = """[{backendRefs: [{name: v1, port: 80}, {name: v2, port: 80, filters: [
      {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X, value: y}]}},
      {type: URLRewrite, urlRewrite: {hostname: v2.x}}]}]}]"""
    _, plan = make(PEOPLE + route(rule))
    first, second = _table(plan).routes[0].backends
    assert (first.request, first.hostname) == (HeaderChanges(), None)
    assert (second.request, second.hostname) == (HeaderChanges((("x", "y"),)), "v2.x")


def test_filters_of_a_backend_that_change_the_way_give_it_a_route_of_its_own() -> None:
    rule = """[{matches: [{path: {value: /a}}], filters: [
        {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, value: rule}]}}], backendRefs: [
      {name: v1, port: 80, weight: 3, filters: [
        {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}},
        {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x, value: own}]}}]},
      {name: v2, port: 80, weight: 0, filters: [{type: CORS, cors: {allowOrigins: ["*"]}}]},
      {name: v2, port: 80, weight: 2, filters: [
        {type: RequestRedirect, requestRedirect: {hostname: x.y}}]},
      {name: v2, port: 80, weight: 1, filters: [
        {type: RequestMirror, requestMirror: {backendRef: {name: v1, port: 81}}}]},
      {name: nobody, port: 80, weight: 1, filters: [
        {type: RequestRedirect, requestRedirect: {hostname: x.y}}]}]}]"""
    _, plan = make(PEOPLE + route(rule))
    table = _table(plan).routes
    assert [r.match.below for r in table] == [428_571, 714_285, 857_142, None]
    first, second, third, missing = table
    assert [b.cluster for r in table for b in r.backends] == ["default/v1:80/4", "default/v2:80/4", None]
    assert first.actions.path == PathChange("prefix", "/b")
    assert first.actions.request == HeaderChanges((("x", "own"),))
    assert second.actions.redirect is not None and not second.backends
    assert third.actions.mirrors == (Mirror("default/v1:81/4"),) and third.actions.path is None
    # What cannot be used answers 500, whatever its filters say.
    assert missing.actions.redirect is None


def test_mirrors_are_named_by_cluster_and_share() -> None:
    item = "{{type: RequestMirror, requestMirror: {{backendRef: {{name: {}, port: {}}}, {}}}}}"
    listed = (
        item.format("v2", 80, ""),
        item.format("v1", 81, "percent: 20"),
        item.format("v1", 80, "fraction: {numerator: 1, denominator: 3}"),
        item.format("v1", 80, "percent: 0"),
        item.format("nobody", 80, ""),
    )
    _, plan = make(
        PEOPLE + route(f"[{{filters: [{', '.join(listed)}], backendRefs: [{{name: v1, port: 80}}]}}]")
    )
    assert _table(plan).routes[0].actions.mirrors == (
        Mirror("default/v2:80/4"),
        Mirror("default/v1:81/4", 20, 100),
        Mirror("default/v1:80/4", 1, 3),
    )
    assert {"default/v1:80/4", "default/v1:81/4", "default/v2:80/4"} <= set(plan.proxy.mirrored)
    # Rights at endpoints that only copies go to are judged too.
    assert {d for r in plan.proxy.mirror_rights for d in r.destinations} >= {
        e.policy_class for c in plan.proxy.clusters if c.name == "default/v2:80/4" for e in c.endpoints
    }


def test_later_changes_of_headers_hold() -> None:
    rule = HeaderChanges((("a", "1"), ("b", "1")), (("c", "1"),), ("d",))
    share = HeaderChanges((("a", "2"),), (("c", "2"),), ("b",))
    assert rule.then(share) == HeaderChanges((("a", "2"),), (("c", "1"), ("c", "2")), ("d", "b"))


def rule(inside: str) -> str:
    return f"spec: {{parentRefs: [{{group: '', kind: Service, name: web}}], rules: [{{{inside}}}]}}"


def filters(*items: str, more: str = "") -> str:
    return rule(f"filters: [{', '.join(items)}]{more}")


def headers(inside: str) -> str:
    return filters(f"{{type: RequestHeaderModifier, requestHeaderModifier: {{{inside}}}}}")


def redirect(inside: str, more: str = "") -> str:
    return filters(f"{{type: RequestRedirect, requestRedirect: {{{inside}}}}}", more=more)


def mirror(ref: str, share: str = "") -> str:
    return filters(f"{{type: RequestMirror, requestMirror: {{backendRef: {{{ref}}}, {share}}}}}")


@pytest.mark.parametrize(
    ("body", "start"),
    [
        (filters("{type: ExtensionRef}"), "spec.rules[0].filters[0].type: "),
        (filters("{type: RequestMirror}"), "spec.rules[0].filters[0].requestMirror: is missing"),
        (mirror("name: a"), "spec.rules[0].filters[0].requestMirror.backendRef.port: is missing"),
        (mirror("name: a, port: 80", "percent: 101"), "spec.rules[0].filters[0].requestMirror.percent: 101"),
        (
            mirror("name: a, port: 80", "percent: 1, fraction: {numerator: 1}"),
            "spec.rules[0].filters[0].requestMirror: holds both",
        ),
        (
            mirror("name: a, port: 80", "fraction: {numerator: 3, denominator: 2}"),
            "spec.rules[0].filters[0].requestMirror.fraction.numerator: 3 is not",
        ),
        (filters("{type: ExternalAuth}"), "spec.rules[0].filters[0].externalAuth: is missing"),
        (filters("{type: ExtensionRef}"), "spec.rules[0].filters[0].type: "),
        (filters("{type: CORS}"), "spec.rules[0].filters[0].cors: is missing"),
        (
            filters("{type: CORS, cors: {}, urlRewrite: {}}"),
            "spec.rules[0].filters[0].urlRewrite: does not belong",
        ),
        (
            filters("{type: CORS, cors: {}}", "{type: CORS, cors: {}}"),
            'spec.rules[0].filters: holds "CORS" 2',
        ),
        (
            headers("set: [{name: Host, value: a}]"),
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].name: ",
        ),
        (headers("remove: [Content-Length]"), "spec.rules[0].filters[0].requestHeaderModifier.remove[0]: "),
        (
            headers("set: [{name: x-penstock-destination, value: a}]"),
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].name: ",
        ),
        (
            headers("add: [{name: A, value: '1'}, {name: a, value: '2'}]"),
            "spec.rules[0].filters[0].requestHeaderModifier.add: holds the same name twice",
        ),
        (redirect("statusCode: 304"), "spec.rules[0].filters[0].requestRedirect.statusCode: 304"),
        (redirect("hostname: '*.x'"), "spec.rules[0].filters[0].requestRedirect.hostname: "),
        (redirect("port: 70000"), "spec.rules[0].filters[0].requestRedirect.port: "),
        (redirect("", ", backendRefs: [{name: a, port: 80}]"), "spec.rules[0].backendRefs: stands beside"),
        (
            redirect(
                "path: {type: ReplacePrefixMatch, replacePrefixMatch: /a}",
                ", matches: [{path: {type: Exact, value: /b}}]",
            ),
            "spec.rules[0].filters[0].requestRedirect.path.replacePrefixMatch: needs exactly one match",
        ),
        (
            redirect("path: {type: ReplaceFullPath, replacePrefixMatch: /a, replaceFullPath: /b}"),
            "spec.rules[0].filters[0].requestRedirect.path.replacePrefixMatch: does not belong",
        ),
        (
            redirect("path: {type: ReplaceFullPath, replaceFullPath: /a/../b}"),
            "spec.rules[0].filters[0].requestRedirect.path.replaceFullPath: ",
        ),
        (
            filters("{type: CORS, cors: {allowOrigins: [a.example]}}"),
            "spec.rules[0].filters[0].cors.allowOrigins[0]: ",
        ),
        (rule("timeouts: {request: 1.5s}"), "spec.rules[0].timeouts.request: "),
        (
            rule("timeouts: {request: 1s, backendRequest: 2s}"),
            "spec.rules[0].timeouts.backendRequest: is longer",
        ),
        (rule("retry: {codes: [200]}"), "spec.rules[0].retry.codes[0]: 200 is not"),
        (rule("retry: {codes: [403]}"), "spec.rules[0].retry.codes[0]: 403 is how"),
        (
            rule("backendRefs: [{name: a, port: 80, filters: [{type: CORS, cors: {maxAge: 0}}]}]"),
            "spec.rules[0].backendRefs[0].filters[0].cors.maxAge: ",
        ),
        (
            rule(
                "backendRefs: [{name: a, port: 80, filters: [{type: URLRewrite, urlRewrite: {}}, "
                "{type: RequestRedirect, requestRedirect: {}}]}]"
            ),
            "spec.rules[0].backendRefs[0].filters: holds both",
        ),
    ],
)
def test_bad_filters(body: str, start: str) -> None:
    only(said("HTTPRoute", body), start)


def test_a_redirect_and_a_rewrite() -> None:
    body = filters("{type: RequestRedirect, requestRedirect: {}}", "{type: URLRewrite, urlRewrite: {}}")
    only(said("HTTPRoute", body), "spec.rules[0].filters: holds both")
