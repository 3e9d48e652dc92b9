"""What the conformance suite of Gateway API asks of routes beyond the features by name, through
the real Envoy.

Each test is named after the suite's own and asks what that one asks, with manifests of ours
(docs/conformance.md has all of them, also those that other modules hold).
"""

from __future__ import annotations

from typing import Any

import pytest
from conformance import CERTIFICATE, SERVICES, WEB, accepted, at, get, grant, resolved
from conftest import MeshFactory
from objects import gateway, http_route, listener, service, to
from rig import Mesh, workload
from scripted import Scripted
from test_gateway_http import shown
from test_gateway_tls import Pair, Tls, https


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        *(workload(name, "node-a", serves=True) for name in ("api", "other", "third")),
        workload("shadow", "node-a", labels={"app": "pair"}),
        workload("sound", "node-a", serves=True, labels={"app": "pair"}),
    )


def test_HTTPRouteCORS_with_wildcards(mesh: Mesh) -> None:
    def cors(path: str, **what: Any) -> dict[str, Any]:
        return at(path, to("api"), filters=[{"type": "CORS", "cors": what}])

    star = {"allowMethods": ["*"], "allowHeaders": ["*"], "exposeHeaders": ["*"]}
    mesh.apply(
        *SERVICES,
        gateway("gw"),
        http_route(
            "r",
            "gw",
            cors("/methods", allowOrigins=["https://www.foo.com"], allowMethods=["*"]),
            cors("/origin", allowOrigins=["*"], allowMethods=["PUT"]),
            cors("/open", allowOrigins=["https://*.foo.com"], **star),
            cors("/trusted", allowOrigins=["https://*.foo.com"], allowCredentials=True, **star),
        ),
    )

    def preflight(path: str, origin: str) -> dict[str, str]:
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "x-header-1, x-header-2",
        }
        answer = get(mesh, path=path, method="OPTIONS", headers=asked)
        assert answer.status in (200, 204) and not answer.body
        found = {k.removeprefix("access-control-allow-"): v for k, v in answer.headers.items()}
        return {k: found[k] for k in ("origin", "methods", "headers", "credentials") if k in found}

    assert preflight("/methods", "https://www.foo.com")["methods"] in ("PUT", "*")
    assert "credentials" not in preflight("/methods", "https://www.foo.com")
    for origin in ("https://foobar.com", "https://foobar.com:12345"):
        found = preflight("/origin", origin)
        assert (found["origin"] in (origin, "*"), found["methods"]) == (True, "PUT")
        assert get(mesh, path="/origin", headers={"Origin": origin}).pod == "api"
    found = preflight("/open", "https://other.foo.com")
    assert found["methods"] in ("PUT", "*")
    assert found["headers"].replace(" ", "") in ("x-header-1,x-header-2", "*")
    assert "credentials" not in found
    # With credentials a lone star would be a literal (Fetch, 4.9): what was asked for is named.
    found = preflight("/trusted", "https://other.foo.com")
    assert found["headers"].replace(" ", "") == "x-header-1,x-header-2"
    assert {**found, "headers": ""} == {
        "origin": "https://other.foo.com",
        "methods": "PUT",
        "headers": "",
        "credentials": "true",
    }
    plain = get(
        mesh, path="/trusted", headers={"Origin": "https://other.foo.com", "Authorization": "Bearer t"}
    )
    assert plain.headers["access-control-allow-origin"] == "https://other.foo.com"
    assert plain.headers["access-control-allow-credentials"] == "true"
    foreign = get(mesh, path="/trusted", headers={"Origin": "http://not-foo.com", "Cookie": "sid=1"})
    assert "access-control-allow-credentials" not in foreign.headers


def test_HTTPRouteRedirectPortAndScheme(mesh: Mesh) -> None:
    def redirect(scheme: str, port: int) -> dict[str, Any]:
        what: dict[str, Any] = {"hostname": "example.org"}
        what |= {"scheme": scheme} if scheme else {}
        what |= {"port": port} if port else {}
        return at(f"/{scheme}-{port}", filters=[{"type": "RequestRedirect", "requestRedirect": what}])

    asked = [(s, p) for s in ("", "http", "https") for p in (0, 80, 443, 8080, 8443)]
    mesh.apply(
        CERTIFICATE.secret("cert"),
        gateway("gw", listener(), listener("alt", 8080), https("", "cert")),
        http_route("r", "gw", *(redirect(*each) for each in asked)),
    )

    def location(scheme: str, port: int, own: str, dialled: int) -> str:
        """The scheme's own port where a scheme is named, else the one that was dialled."""
        wanted = scheme or own
        number = port or ({"http": 80, "https": 443}[scheme] if scheme else dialled)
        shown = "" if number == {"http": 80, "https": 443}[wanted] else f":{number}"
        return f"{wanted}://example.org{shown}"

    for dialled in (80, 8080):
        for scheme, port in asked:
            answer = get(mesh, path=f"/{scheme}-{port}", port=dialled)
            found = answer.headers["location"].removesuffix(f"/{scheme}-{port}")
            assert (answer.status, found) == (302, location(scheme, port, "http", dialled)), (scheme, port)
    with Tls(mesh, "example.org", CERTIFICATE) as connection:
        for scheme, port in asked:
            answer = connection.ask("example.org", f"/{scheme}-{port}")
            found = answer.headers["location"].removesuffix(f"/{scheme}-{port}")
            assert (answer.status, found) == (302, location(scheme, port, "https", 443)), (scheme, port)


def test_HTTPRouteHTTPSListenerDetectMisdirectedRequests(mesh: Mesh) -> None:
    names = ("second-example.org", "*.wildcard.org", "fourth-example.wildcard.org")
    certificates = [https(name, "cert") for name in ("", *names)]
    mesh.apply(
        *SERVICES,
        CERTIFICATE.secret("cert"),
        gateway("gw", *certificates),
        http_route(
            "one",
            {"name": "gw", "sectionName": "all"},
            {"backendRefs": [to("api")]},
            hostnames=["example.org"],
        ),
        *(
            http_route(f"of-{i}", {"name": "gw", "sectionName": each["name"]}, {"backendRefs": [to("other")]})
            for i, each in enumerate(certificates[1:])
        ),
    )
    asked = {
        "example.org": {"example.org": 200, "second-example.org": 421, "unknown-example.org": 404},
        "second-example.org": {"second-example.org": 200, "example.org": 421, "unknown-example.org": 421},
        "third-example.wildcard.org": {
            "third-example.wildcard.org": 200,
            "fifth-example.wildcard.org": 200,
            "fourth-example.wildcard.org": 421,
            "second-example.org": 421,
            "unknown-example.org": 421,
        },
        "fourth-example.wildcard.org": {
            "fourth-example.wildcard.org": 200,
            "fifth-example.wildcard.org": 421,
        },
        "unknown-example.org": {"example.org": 200, "unknown-example.org": 404},
    }
    for sni, hosts in asked.items():
        with Tls(mesh, sni, CERTIFICATE) as connection:
            assert {host: connection.ask(host).status for host in hosts} == hosts, sni


def test_HTTPListenerMultipleTLSCertsLongestSNIMatching(mesh: Mesh) -> None:
    """Of the certificates of one listener the one with the longer name for it is shown."""
    wide, exact = Pair("*.example.org"), Pair("a.example.org")
    mesh.apply(
        *SERVICES,
        wide.secret("wide"),
        exact.secret("exact"),
        gateway("gw", https("*.example.org", "wide", "exact")),
        http_route("r", "gw", {"backendRefs": [to("api")]}),
    )
    for sni, pair in (("a.example.org", exact), ("b.example.org", wide)):
        with Tls(mesh, sni, pair) as connection:
            assert connection.ask(sni).status == 200


def test_HTTPRoutePartiallyInvalidViaInvalidReferenceGrant(mesh: Mesh) -> None:
    far = {**SERVICES[0], "metadata": {"name": "far", "namespace": "blue"}}
    there = {"name": "far", "namespace": "blue", "port": 80}
    rules = (at("/v1", there), at("/", to("other")))
    for invalid in (grant("blue", "another"), grant("red"), grant("blue", kind="GRPCRoute")):
        mesh.apply(*SERVICES, far, gateway("gw"), http_route("r", "gw", *rules), invalid)
        assert resolved(mesh, "r") == ("False", "RefNotPermitted")
        assert accepted(mesh, "r") == [("True", "Accepted")]
        assert (get(mesh, path="/v1").status, get(mesh).pod) == (500, "other")
    mesh.apply(*SERVICES, far, gateway("gw"), http_route("r", "gw", *rules), grant("blue", "far"))
    assert resolved(mesh, "r") == ("True", "ResolvedRefs")


def test_HTTPRouteInvalidParentRef(mesh: Mesh) -> None:
    """A section or a port that is not there, both of different listeners, and a Gateway for others."""
    route = http_route("r", {"name": "gw", "sectionName": "absent"}, at("/", to("api")))
    route["spec"]["parentRefs"] += [
        {"name": "gw", "port": 81},
        {"name": "gw", "sectionName": "http", "port": 8080},
        {"name": "far", "namespace": "blue"},
    ]
    mesh.apply(
        *SERVICES, gateway("gw", listener(), listener("alt", 8080)), gateway("far", namespace="blue"), route
    )
    refused = [("False", "NoMatchingParent")] * 3
    assert accepted(mesh, "r") == [*refused, ("False", "NotAllowedByListeners")]
    status = shown(mesh, "gateway", "gw")["status"]["listeners"]
    assert [each["attachedRoutes"] for each in status] == [0, 0]
    assert get(mesh).status == 404


def test_HTTPRouteMultipleGateways(mesh: Mesh) -> None:
    """One route at two Gateways, and others at one each: each Gateway serves its own."""
    both = http_route("both", "gw", at("/both", to("api")))
    both["spec"]["parentRefs"].append({"name": "second"})
    mesh.apply(
        *SERVICES,
        gateway("gw"),
        gateway("second"),
        both,
        http_route("one", "gw", at("/one", to("other"))),
        http_route("two", "second", at("/two", to("third"))),
    )
    assert accepted(mesh, "both") == [("True", "Accepted")] * 2
    asked = [("gw", "/both"), ("second", "/both"), ("gw", "/one"), ("second", "/two")]
    assert [get(mesh, gw=gw, path=path).pod for gw, path in asked] == ["api", "api", "other", "third"]
    assert [get(mesh, gw=gw, path=path).status for gw, path in (("gw", "/two"), ("second", "/one"))] == [
        404
    ] * 2


def test_HTTPRouteMultipleRoutesAttachmentSameHostnameIntersection(mesh: Mesh) -> None:
    """The more specific of the routes' own names wins, also where both meet the listener in the same one."""
    older = http_route("a-older", "gw", at("/", to("other")), hostnames=["*.example.com"])
    newer = http_route("b-newer", "gw", at("/", to("api")), hostnames=["abc.example.com"])
    on = gateway("gw", listener(hostname="abc.example.com"))
    mesh.apply(*SERVICES, on, older)
    assert get(mesh, "abc.example.com").pod == "other"
    mesh.apply(*SERVICES, on, older, newer)
    assert get(mesh, "abc.example.com").pod == "api"


def test_HTTPRouteRetryConnectionError_beside_a_sound_endpoint(mesh: Mesh) -> None:
    """Of two endpoints one resets each connection: whoever asks is served by the other one."""
    mesh.apply(
        service("pair", WEB, selector={"app": "pair"}),
        gateway("gw"),
        http_route("r", "gw", at("/", to("pair"), retry={"attempts": 5, "backoff": "10ms"})),
    )
    with Scripted(mesh["shadow"], 8080, lambda _: 0) as shadow:
        assert {get(mesh).pod for _ in range(20)} == {"sound"}
        assert shadow.heads


def test_HTTPRouteMatchingAcrossRoutes_by_host(mesh: Mesh) -> None:
    def v(*headers: tuple[str, str], path: str = "/") -> dict[str, Any]:
        found: dict[str, Any] = {"path": {"type": "PathPrefix", "value": path}}
        return {**found, "headers": [{"name": n, "value": x} for n, x in headers]} if headers else found

    one = {"matches": [v(), v(("version", "one"))], "backendRefs": [to("api")]}
    two = {"matches": [v(path="/v2"), v(("version", "two"))], "backendRefs": [to("other")]}
    mesh.apply(
        *SERVICES,
        gateway("gw"),
        http_route("a", "gw", one, hostnames=["example.com", "example.net"]),
        http_route("b", "gw", two, hostnames=["example.com"]),
    )
    assert get(mesh, "example.com").pod == "api"
    assert get(mesh, "example.com", "/v2").pod == "other"
    assert get(mesh, "example.net", "/v2").pod == "api"
    assert get(mesh, "example.com", headers={"version": "two"}).pod == "other"
    assert get(mesh, "example.net", headers={"version": "two"}).pod == "api"
    assert get(mesh, "example.com", "/v2", headers={"version": "one"}).pod == "other"
