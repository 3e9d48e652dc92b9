"""What the conformance suite of Gateway API asks of Gateways beyond the features by name, through
the real Envoy.

Each test is named after the suite's own and asks what that one asks, with manifests of ours
(docs/conformance.md has all of them, also those that other modules hold).
"""

from __future__ import annotations

from typing import Any

import pytest
from conformance import API, CERTIFICATE, SERVICES, accepted, at, get, grant, listeners, resolved
from conftest import MeshFactory
from objects import gateway, http_route, listener, to
from rig import Mesh, workload
from test_gateway_http import conditions, namespace, shown
from test_gateway_tls import Tls, https


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        *(workload(name, "node-a", serves=True) for name in ("api", "other", "third")),
    )


# --- Gateway --------------------------------------------------------------------------------------------


def test_GatewayListenerProtocolAndRouteKindConflicts(mesh: Mesh) -> None:
    passed = {"tls": {"mode": "Passthrough"}}
    only = {"allowedRoutes": {"kinds": [{"kind": "TLSRoute"}]}}
    mesh.apply(
        *SERVICES,
        CERTIFICATE.secret("cert"),
        gateway(
            "gw",
            listener("tls", 443, "TLS", hostname="abc.example.com", **passed, **only),
            https("", "cert", name="https", port=8443),
            listener("clash", 8443, "TLS", **passed, **only),
        ),
        http_route("r", {"name": "gw", "sectionName": "tls"}, at("/", to("api"))),
    )
    assert accepted(mesh, "r") == [("False", "NotAllowedByListeners")]
    assert resolved(mesh, "r") == ("True", "ResolvedRefs")
    found = listeners(mesh, "gateway", "gw")
    for name in ("https", "clash"):
        assert found[name]["Accepted"] == ("False", "Invalid")
        assert found[name]["Programmed"][0] == "False"
        assert found[name]["Conflicted"] == ("True", "ProtocolConflict")
    assert found["tls"]["Programmed"] == ("True", "Programmed")
    with pytest.raises(OSError):
        Tls(mesh, "example.org", CERTIFICATE, port=8443)


def test_GatewayInvalidParametersRef(mesh: Mesh) -> None:
    nothing = {"group": "example.com", "kind": "Fancy", "name": "nothing"}
    mesh.apply(*SERVICES, gateway("gw", infrastructure={"parametersRef": nothing}))
    found = conditions(shown(mesh, "gateway", "gw")["status"]["conditions"])
    assert found["Accepted"] == ("False", "InvalidParameters")
    assert found["Programmed"][0] == "False"


def test_GatewayInvalidFrontendClientCertificateValidation(mesh: Mesh) -> None:
    """Each fault is that of its own port; the default, which is sound, holds at the others."""
    elsewhere = {"kind": "ConfigMap", "group": "", "name": "ca", "namespace": "blue"}
    refs = {
        7443: {"kind": "ConfigMap", "group": "", "name": "absent"},
        8443: {"kind": "Service", "group": "", "name": "api"},
        6443: elsewhere,
    }

    def asks(ref: dict[str, Any]) -> dict[str, Any]:
        return {"validation": {"caCertificateRefs": [ref]}}

    frontend = {
        "default": asks({"name": "ca"}),
        "perPort": [{"port": port, "tls": asks(ref)} for port, ref in refs.items()],
    }
    mesh.apply(
        *SERVICES,
        CERTIFICATE.secret("cert"),
        CERTIFICATE.authorities("ca"),
        {**CERTIFICATE.authorities("ca"), "metadata": {"name": "ca", "namespace": "blue"}},
        gateway(
            "gw",
            *(https("", "cert", name=f"p{port}", port=port) for port in (443, *refs)),
            tls={"frontend": frontend},
        ),
    )
    found = listeners(mesh, "gateway", "gw")
    for condition in ("Accepted", "ResolvedRefs", "Programmed"):
        assert found["p443"][condition][0] == "True"
    why = {7443: "InvalidCACertificateRef", 8443: "InvalidCACertificateKind", 6443: "RefNotPermitted"}
    for port, reason in why.items():
        assert found[f"p{port}"]["ResolvedRefs"] == ("False", reason)
        assert found[f"p{port}"]["Accepted"] == ("False", "NoValidCACertificate")
        assert found[f"p{port}"]["Programmed"][0] == "False"


# --- ListenerSet ----------------------------------------------------------------------------------------


def listener_set(name: str, *listed: dict[str, Any], ns: str = "default") -> dict[str, Any]:
    return {
        "apiVersion": API,
        "kind": "ListenerSet",
        "metadata": {"name": name, "namespace": ns},
        "spec": {"parentRef": {"name": "gw", "namespace": "default"}, "listeners": list(listed)},
    }


def on(kind: str, name: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, **more}


ANYONE = {"allowedListeners": {"namespaces": {"from": "All"}}}
REFUSED = {"Accepted": ("False", "ListenersNotValid"), "Programmed": ("False", "ListenersNotValid")}


@pytest.mark.parametrize(
    ("more", "reason"),
    [({}, "HostnameConflict"), ({"protocol": "TCP"}, "ProtocolConflict")],
    ids=["ListenerSetHostnameConflict", "ListenerSetProtocolConflict"],
)
def test_ListenerSet_conflicts(mesh: Mesh, more: dict[str, str], reason: str) -> None:
    """A Gateway's own listener comes first, then those of the sets, the older before the newer."""
    hosts = {"hostname": "own.com"}, {"hostname": "first.com"}
    against_own, against_first = ({} if more else each for each in hosts)
    mesh.apply(
        *SERVICES,
        gateway("gw", listener("own", **hosts[0]), **ANYONE),
        listener_set("a", listener("good", hostname="a.com"), listener("first", **hosts[1])),
        listener_set("b", listener("good", hostname="b.com"), listener("lost", **against_first, **more)),
        listener_set("c", listener("lost", **against_own, **more)),
    )
    lost = {
        "Accepted": ("False", reason),
        "Programmed": ("False", reason),
        "Conflicted": ("True", reason),
        "ResolvedRefs": ("True", "ResolvedRefs"),
    }
    assert listeners(mesh, "gateway", "gw")["own"]["Programmed"] == ("True", "Programmed")
    assert listeners(mesh, "listenerset", "a")["first"]["Programmed"] == ("True", "Programmed")
    found = listeners(mesh, "listenerset", "b")
    assert (found["good"]["Programmed"], found["lost"]) == (("True", "Programmed"), lost)
    told = conditions(shown(mesh, "listenerset", "b")["status"]["conditions"])
    assert (told["Accepted"][0], told["Programmed"]) == ("True", ("True", "Programmed"))
    assert conditions(shown(mesh, "listenerset", "c")["status"]["conditions"]) == REFUSED
    assert shown(mesh, "gateway", "gw")["status"]["attachedListenerSets"] == 2


def test_ListenerSetAllowedNamespaces_and_AllowedRoutesNamespaces(mesh: Mesh) -> None:
    def takes(name: str, which: dict[str, Any]) -> dict[str, Any]:
        return listener(name, hostname=f"{name}.com", allowedRoutes={"namespaces": which})

    chosen = {"from": "Selector", "selector": {"matchLabels": {"team": "blue"}}}
    spaces = [("default", None), ("blue", "blue"), ("red", "red")]
    routes = [
        http_route(
            f"of-{ns}", on("ListenerSet", "set", namespace="default"), at(f"/{ns}", to("api")), namespace=ns
        )
        for ns, _ in spaces
    ]
    for each in routes[1:]:
        each["spec"]["rules"][0]["backendRefs"][0]["namespace"] = "default"
    permitted = grant("default")
    permitted["spec"]["from"] = [{**permitted["spec"]["from"][0], "namespace": ns} for ns in ("blue", "red")]
    mesh.apply(
        *SERVICES,
        *(namespace(ns, team=team) for ns, team in spaces if team),
        permitted,
        gateway("gw", listener(hostname="own.com"), allowedListeners={"namespaces": chosen}),
        listener_set("far", listener("far", hostname="far.com"), ns="blue"),
        listener_set("out", listener("out", hostname="out.com"), ns="red"),
        gateway("open", listener(hostname="own.com"), **ANYONE),
        {
            **listener_set(
                "set", takes("all", {"from": "All"}), takes("same", {"from": "Same"}), takes("some", chosen)
            ),
            "spec": {
                "parentRef": {"name": "open"},
                "listeners": [
                    takes("all", {"from": "All"}),
                    takes("same", {"from": "Same"}),
                    takes("some", chosen),
                ],
            },
        },
        *routes,
    )
    told = conditions(shown(mesh, "listenerset", "far", "blue")["status"]["conditions"])
    assert told == {"Accepted": ("True", "Accepted"), "Programmed": ("True", "Programmed")}
    told = conditions(shown(mesh, "listenerset", "out", "red")["status"]["conditions"])
    assert told == {"Accepted": ("False", "NotAllowed"), "Programmed": ("False", "NotAllowed")}
    counts = {
        x["name"]: x["attachedRoutes"] for x in shown(mesh, "listenerset", "set")["status"]["listeners"]
    }
    assert counts == {"all": 3, "same": 1, "some": 1}
    takers = {"all": {"default", "blue", "red"}, "same": {"default"}, "some": {"blue"}}
    for name, welcome in takers.items():
        found = {ns: get(mesh, f"{name}.com", f"/{ns}", gw="open").status for ns, _ in spaces}
        assert found == {ns: 200 if ns in welcome else 404 for ns, _ in spaces}, name


def test_ListenerSetReferenceGrant(mesh: Mesh) -> None:
    """A set's certificates of other namespaces are granted to the set, not to its Gateway."""
    far = {"certificateRefs": [{"name": "cert", "namespace": "blue"}]}
    served = listener("tls", 443, "HTTPS", hostname="example.org", tls=far)
    documents = (
        *SERVICES,
        CERTIFICATE.secret("cert", "blue"),
        gateway("gw", **ANYONE),
        listener_set("set", served),
    )
    for given, reason in (("Gateway", "RefNotPermitted"), ("ListenerSet", "ResolvedRefs")):
        mesh.apply(*documents, grant("blue", kind=given, to_kind="Secret"))
        found = listeners(mesh, "listenerset", "set")["tls"]
        assert found["ResolvedRefs"] == (str(given == "ListenerSet"), reason)
        told = conditions(shown(mesh, "listenerset", "set")["status"]["conditions"])
        good = {"Accepted": ("True", "Accepted"), "Programmed": ("True", "Programmed")}
        assert told == (good if given == "ListenerSet" else REFUSED)


def test_ListenerSetDualParentRefIndependence(mesh: Mesh) -> None:
    """Each parent is asked by itself, and the Gateway never speaks for its sets."""
    both = http_route("both", "gw", at("/both", to("api")))
    both["spec"]["parentRefs"].append(on("ListenerSet", "set"))
    one = http_route("one", {"name": "gw", "sectionName": "of-set"}, at("/one", to("other")))
    one["spec"]["parentRefs"].append(on("ListenerSet", "set"))
    mesh.apply(
        *SERVICES,
        gateway("gw", listener(hostname="gw.com"), **ANYONE),
        listener_set("set", listener("of-set", hostname="set.com")),
        both,
        one,
    )
    assert accepted(mesh, "both") == [("True", "Accepted")] * 2
    assert accepted(mesh, "one") == [("False", "NoMatchingParent"), ("True", "Accepted")]
    found = {h: [get(mesh, h, p).status for p in ("/both", "/one")] for h in ("gw.com", "set.com")}
    assert found == {"gw.com": [200, 404], "set.com": [200, 200]}
    (status,) = shown(mesh, "listenerset", "set")["status"]["listeners"]
    assert status["attachedRoutes"] == 2
