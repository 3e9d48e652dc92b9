"""Models of what policies about traffic say, for test_envoy_golden.py."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from penstock.routing.actions import Actions
from penstock.routing.model import (
    ProxyCluster,
    ProxyEndpoint,
    ProxyModel,
    Rights,
    Route,
    RouteBackend,
    RouteMatch,
    ServiceTable,
    StringMatch,
)
from penstock.routing.traffic import Breaker, HashOn, Outliers, Probe, RetryBudget, Traffic
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

V1, V2 = IPv4Address("10.244.0.11"), IPv4Address("10.244.0.12")
WEB = "spiffe://penstock.local/ns/default/sa/web"
EVERYTHING = RouteMatch(StringMatch("prefix", "/"))


def table(*routes: Route) -> ServiceTable:
    return ServiceTable("default/web:80/4", IPv4Address("10.96.0.10"), 80, routes, (Rights(None, ("v1",)),))


def _cluster(port: int, traffic: Traffic, *endpoints: ProxyEndpoint, http2: bool = False) -> ProxyCluster:
    return ProxyCluster(f"default/web:{port}/4", 4, endpoints, http2, traffic=traffic)


def treated(name: str, treatment: Treatment) -> Route:
    match = RouteMatch(StringMatch("exact", f"/{name}"))
    backends = (RouteBackend("default/web:80/4", 1),)
    return Route(f"default/web/{name}/0", match, backends, Actions(treatment=treatment))


MODELS = {
    "traffic-backend": ProxyModel(
        services=(
            table(
                Route(
                    "default/web:80/4/plain",
                    EVERYTHING,
                    (RouteBackend("default/web:80/4", 1),),
                    Actions(
                        hashes=(
                            HashOn("Header", "x-user"),
                            HashOn("Cookie", "pin", 60_000),
                            HashOn("SourceAddress"),
                        )
                    ),
                )
            ),
        ),
        clusters=(
            _cluster(
                80,
                Traffic(
                    "RingHash",
                    breaker=Breaker(10, 20, 30),
                    outliers=Outliers(5, 10_000, 30_000, 50),
                    probe=Probe("http", 500, 250, 2, 3, "/healthz", "web.default", (200, 204)),
                    connect_timeout=250,
                    failover="Zone",
                    retries=RetryBudget(20, 10),
                ),
                ProxyEndpoint(V1, 8080, "v1"),
                ProxyEndpoint(V2, 8080, "v2", WEB, priority=1),
            ),
            _cluster(
                81,
                Traffic("RoundRobin", probe=Probe("grpc", 500, 250, 1, 1, name="web")),
                ProxyEndpoint(V1, 8081, "v1"),
                http2=True,
            ),
            _cluster(
                82, Traffic("Maglev", probe=Probe("tcp", 500, 250, 1, 1)), ProxyEndpoint(V1, 8082, "v1")
            ),
        ),
    ),
    "traffic-http": ProxyModel(
        services=(
            replace(
                table(
                    treated("limit", Treatment(limit=RateLimit(5, 1000, 10))),
                    treated("identity", Treatment(limit=RateLimit(5, 500, 5, "Identity"))),
                    treated("fault", Treatment(fault=Fault(250, 10, http_status=503, abort_percent=20))),
                    treated("grpc", Treatment(fault=Fault(grpc_status=14))),
                    treated(
                        "jwt",
                        Treatment(
                            jwt=Jwt(
                                (
                                    JwtProvider(
                                        "a", "me", ("x",), '{"keys": []}', claims=(("sub", "x-sub"),)
                                    ),
                                    JwtProvider(
                                        "b",
                                        "you",
                                        cluster="default/keys:80/4/helper",
                                        uri="http://keys.default/k",
                                        cache=60_000,
                                        header="x-token",
                                        forward=True,
                                    ),
                                ),
                                optional=True,
                            )
                        ),
                    ),
                    treated("no-keys", Treatment(jwt=Jwt(()))),
                    treated("asks", Treatment(auth=ExternalAuth("helper", "a.b", True, body=10))),
                    treated(
                        "asks-http",
                        Treatment(auth=ExternalAuth("helper", "a.b", False, "/may", ("x-a",), ("x-b",))),
                    ),
                    treated("asks-nobody", Treatment(auth=ExternalAuth(None))),
                    treated("kept", Treatment(session=Session("Header", "X-Seat"))),
                ),
                treatment=Treatment(
                    compression=Compression(("gzip", "brotli", "zstd"), 100, ("text/html",)),
                    session=Session("Cookie", "seat", 3_600_000),
                ),
            ),
        ),
        clusters=(
            ProxyCluster(
                "default/keys:80/4/helper", 4, (ProxyEndpoint(V1, 8080, "v1"),), http2=True, helper=True
            ),
        ),
    ),
}
