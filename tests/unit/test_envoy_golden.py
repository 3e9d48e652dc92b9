"""Whole models and the resources they become, word for word.

`python tests/unit/test_envoy_golden.py` writes the files anew; read the difference before you commit it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest
import traffic_models
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from penstock.envoy.resources import build
from penstock.routing.actions import (
    Actions,
    Cors,
    HeaderChanges,
    Mirror,
    PathChange,
    Redirect,
    Retry,
)
from penstock.routing.model import (
    Certificate,
    EdgeListener,
    ListenerKind,
    ProxyCluster,
    ProxyEndpoint,
    ProxyListener,
    ProxyModel,
    RequestMatch,
    Rights,
    Route,
    RouteBackend,
    RouteMatch,
    ServerTls,
    ServiceTable,
    StringMatch,
    TcpChain,
    UpstreamTls,
)
from penstock.world import Settings

GOLDEN = Path(__file__).parent / "golden" / "envoy"
V1, V2, FAR = IPv4Address("10.244.0.11"), IPv4Address("10.244.0.12"), IPv6Address("fd00:244:1::13")
NEAR = IPv6Address("fd00:244:1::14")
WEB = "spiffe://penstock.local/ns/default/sa/web"

MODELS = {
    "empty": ProxyModel(),
    "server-names": ProxyModel(
        listeners=(
            ProxyListener(
                "class-3/names/2/a.example/",
                ListenerKind.NAMES,
                3,
                15001,
                outward=("a.example",),
                borrows=False,
            ),
            ProxyListener(
                "class-3/names/4/*.a,**.b/",
                ListenerKind.NAMES,
                3,
                15002,
                None,
                4,
                WEB,
                outward=("**.b", "*.a"),
            ),
            ProxyListener(
                "class-4/tls-names/0//a.example", ListenerKind.TLS_NAMES, 4, 15003, WEB, inward=("a.example",)
            ),
            ProxyListener(
                "class-4/names-audit/0/a/b",
                ListenerKind.NAMES_AUDIT,
                4,
                15004,
                outward=("a",),
                inward=("b",),
            ),
        ),
    ),
    "service": ProxyModel(
        listeners=(ProxyListener("http-service/3", ListenerKind.HTTP_SERVICE, 3, 15001),),
        services=(
            ServiceTable(
                "default/web:80/4",
                IPv4Address("10.96.0.10"),
                80,
                (
                    Route(
                        "default/web/0/0",
                        RouteMatch(
                            StringMatch("prefix", "/v2/"),
                            "GET",
                            (("x-env", StringMatch("regex", "test|dev")),),
                            (("page", StringMatch("exact", "1")),),
                        ),
                        (
                            RouteBackend("default/web-v2:80/4", 9),
                            RouteBackend(None, 1),
                            RouteBackend("default/off:80/4", 0),
                        ),
                    ),
                    Route(
                        "default/web/1/0",
                        RouteMatch(StringMatch("prefix", "/")),
                        (RouteBackend("default/web-v1:80/4", 1),),
                    ),
                ),
                (
                    Rights((5, 3), ("v2", "v1"), ((RequestMatch(method="GET|HEAD", path="/v2(/.*)?"),),)),
                    Rights(None, ("v1",)),
                ),
            ),
        ),
        clusters=(
            ProxyCluster("default/web-v1:80/4", 4, (ProxyEndpoint(V1, 8080, "v1"),)),
            ProxyCluster("default/web-v2:80/4", 4, (ProxyEndpoint(V2, 8080, "v2", weight=3),), http2=True),
        ),
    ),
    "actions": ProxyModel(
        services=(
            ServiceTable(
                "default/web:80/4",
                IPv4Address("10.96.0.10"),
                80,
                (
                    Route(
                        "default/web/treated/0",
                        RouteMatch(StringMatch("prefix", "/a")),
                        (RouteBackend("default/web-v1:80/4", 1),),
                        Actions(
                            request=HeaderChanges((("x-set", "50%"),), (("x-add", "a"),), ("x-gone",)),
                            response=HeaderChanges(remove=("server",)),
                            hostname="in.example",
                            path=PathChange("prefix", "/b/"),
                            cors=Cors(("https://*.example",), ("GET",), ("x-one",), (), 60, True),
                            timeout=2000,
                            try_timeout=500,
                            retry=Retry((503,), 3, 20),
                        ),
                    ),
                    Route(
                        "default/web/followed/0",
                        RouteMatch(StringMatch("prefix", "/c")),
                        (
                            RouteBackend("default/web-v1:80/4", 1, HeaderChanges((("x-for", "v1"),))),
                            RouteBackend("default/web-v2:80/4", 1, hostname="v2.example"),
                        ),
                        Actions(
                            request=HeaderChanges((("x-for", "all"), ("x-rule", "r"))),
                            path=PathChange("full", "/one"),
                        ),
                    ),
                    Route(
                        "default/web/cut/0",
                        RouteMatch(StringMatch("prefix", "/d.e/")),
                        (RouteBackend("default/web-v1:80/4", 1),),
                        Actions(path=PathChange("prefix", "/")),
                    ),
                    Route(
                        "shop/web/0/0",
                        RouteMatch(StringMatch("exact", "/a.B/C"), namespace="shop"),
                        (RouteBackend("default/web-v1:80/4/grpc", 1),),
                        grpc=True,
                    ),
                    Route(
                        "default/web:80/4/shop",
                        RouteMatch(StringMatch("prefix", "/"), namespace="shop"),
                        (),
                        Actions(missing=True),
                    ),
                    Route(
                        "default/web/moved/0",
                        RouteMatch(StringMatch("prefix", "/f")),
                        (),
                        Actions(redirect=Redirect(301, 443, "https", path=PathChange("prefix", "/g"))),
                    ),
                    Route(
                        "default/web/away/0",
                        RouteMatch(StringMatch("exact", "/h")),
                        (),
                        Actions(redirect=Redirect(307, 8080, None, "x.example", PathChange("full", "/i"))),
                    ),
                ),
                (),
            ),
        ),
    ),
    "mirrors": ProxyModel(
        services=(
            ServiceTable(
                "default/web:80/4",
                IPv4Address("10.96.0.10"),
                80,
                (
                    Route(
                        "default/web/0/0",
                        RouteMatch(StringMatch("prefix", "/")),
                        (RouteBackend("default/web-v1:80/4", 1),),
                        Actions(mirrors=(Mirror("default/web-v2:80/4"), Mirror("default/web-v1:80/4", 1, 3))),
                    ),
                ),
                (),
            ),
        ),
        clusters=(
            ProxyCluster("default/web-v1:80/4", 4, (ProxyEndpoint(V1, 8080, "v1"),)),
            ProxyCluster("default/web-v2:80/4", 4, (ProxyEndpoint(V2, 8080, "v2"),)),
        ),
        mirrored=("default/web-v1:80/4", "default/web-v2:80/4"),
        mirror_rights=(Rights((3,), ("v2",), ((RequestMatch(path="/copied"),),)),),
    ),
    "streams": ProxyModel(
        edge=(
            EdgeListener(
                "gateway/default/gw:90/TCP",
                (IPv4Address("10.97.0.1"),),
                90,
                (
                    TcpChain(
                        "gateway/default/gw:90/TCP",
                        (RouteBackend("default/web:90/4/edge/tcp", 3), RouteBackend(None, 1)),
                    ),
                ),
            ),
            EdgeListener(
                "gateway/default/gw:91/UDP",
                (IPv4Address("10.97.0.1"), IPv4Address("10.97.0.2")),
                91,
                (TcpChain("gateway/default/gw:91/UDP", (RouteBackend("mix", 1),)),),
                "UDP",
            ),
            EdgeListener(
                "gateway/default/gw:443/TCP",
                (IPv4Address("10.97.0.1"),),
                443,
                (
                    TcpChain("passed", (RouteBackend("default/web:90/4/edge/tcp", 1),), "*.a.example"),
                    TcpChain("ended", (), "b.example", ServerTls(("certificate/default/b",))),
                ),
            ),
        ),
        clusters=(
            ProxyCluster(
                "default/web:90/4/edge/tcp",
                4,
                (ProxyEndpoint(V1, 9090, "v1"),),
                source=IPv4Address("10.244.0.254"),
                stream=True,
            ),
        ),
        edge_secrets=("10.244.0.254",),
        certificates=(Certificate("certificate/default/b", b"chain", b"key"),),
    ),
    "workloads": ProxyModel(
        listeners=(ProxyListener("http-workload/3", ListenerKind.HTTP_WORKLOAD, 3, 15002),),
        workloads=(ProxyEndpoint(V1, 8080, "v1"), ProxyEndpoint(FAR, 8080, "v2", WEB)),
        workload_rights=(
            Rights(
                (3,),
                ("v1",),
                (
                    (RequestMatch(host="web"), RequestMatch(headers=(("x-token", None), ("x-env", "test")))),
                    (RequestMatch(),),
                ),
            ),
        ),
    ),
    "mesh-tls": ProxyModel(
        listeners=(
            ProxyListener("tls-http/4", ListenerKind.TLS_HTTP, 4, 15003, WEB),
            ProxyListener("tls-tcp/4", ListenerKind.TLS_TCP, 4, 15004, WEB),
            ProxyListener("tcp-mtls/3/300", ListenerKind.TCP_MTLS, 3, 15005, None, 300, WEB),
        ),
        clusters=(ProxyCluster("default/web:80/6", 6, (ProxyEndpoint(FAR, 8080, "v2", WEB),)),),
    ),
    "tls-in-tls": ProxyModel(
        clusters=(
            ProxyCluster(
                "default/web:443/6",
                6,
                (ProxyEndpoint(FAR, 8443, "v2", WEB), ProxyEndpoint(NEAR, 8443, "v1")),
                tls=UpstreamTls("web.example"),
            ),
            ProxyCluster(
                "default/web:443/4/edge",
                4,
                (ProxyEndpoint(V1, 8443, "v2", WEB),),
                source=IPv4Address("10.244.0.254"),
                tls=UpstreamTls("web.example"),
                stream=True,
            ),
        ),
    ),
} | traffic_models.MODELS


def _shown(resources: Mapping[str, Mapping[str, Message]]) -> str:
    document = {
        kind.rpartition(".")[2]: {
            name: MessageToDict(message, preserving_proto_field_name=True) for name, message in items.items()
        }
        for kind, items in resources.items()
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


@pytest.mark.parametrize("name", MODELS)
def test_the_model_becomes_what_it_became(name: str) -> None:
    assert _shown(build(MODELS[name], Settings())) == (GOLDEN / f"{name}.json").read_text()


if __name__ == "__main__":
    for name, model in MODELS.items():
        (GOLDEN / f"{name}.json").write_text(_shown(build(model, Settings())))
