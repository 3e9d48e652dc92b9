"""HTTPPolicy, external authorization and session persistence through the real Envoy.

In the mesh and behind a Gateway alike; each holds for the next request on a connection that is open already.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from time import monotonic
from typing import Any

import grpc
import pytest
from clients import Answer, Http, ask, until
from conftest import MeshFactory
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from envoy.service.auth.v3 import external_auth_pb2
from google.rpc import code_pb2
from objects import gateway, http_policy, http_route, policy, ports, route, select, service, to
from rig import Mesh, workload
from scripted import Scripted

from penstock import lab

WEB = {"port": 80, "targetPort": 8080}
SERVICES = (
    service("api", WEB, selector={"tier": "api"}),
    service("asked", WEB, {"name": "grpc", "port": 90, "targetPort": 9000}, selector={"app": "asked"}),
)
SERVICES[1]["spec"]["ports"][0]["name"] = "http"
API = {"kind": "Service", "name": "api", "port": 80}
ROUTE = {"kind": "HTTPRoute", "name": "r"}


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    return make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("twin", "node-a", labels={"app": "client"}, serviceAccountName="client"),
        workload("asked", "node-a"),
        *(workload(n, "node-a", serves=True, labels={"app": n, "tier": "api"}) for n in ("api-1", "api-2")),
    )


def apply(mesh: Mesh, *more: dict[str, Any]) -> None:
    mesh.apply(*SERVICES, *more)
    refused = [o for o in mesh.on("client").status()["objects"] if o["state"] == "refused"]
    assert not refused


def get(mesh: Mesh, path: str = "/", client: str = "client", **how: Any) -> Answer:
    return ask(mesh[client], mesh.vip("api"), 80, path, **how)


# --- rate limits ----------------------------------------------------------------------------------


def test_a_rate_limit_for_everybody(mesh: Mesh) -> None:
    """The Service has no route: the policy alone brings its port to the proxy."""
    apply(mesh, http_policy("p", API, rateLimit={"requests": 3, "interval": "60s"}))
    codes = [get(mesh, client=c).status for c in ("client", "other", "client", "other", "client")]
    assert codes == [200, 200, 200, 429, 429]


def test_a_rate_limit_for_each_identity(mesh: Mesh) -> None:
    """Two workloads of one identity share; another identity has its own."""
    apply(mesh, http_policy("p", API, rateLimit={"requests": 2, "interval": "60s", "per": "Identity"}))
    assert [get(mesh, client=c).status for c in ("client", "twin", "client", "twin")] == [200, 200, 429, 429]
    forged = {"x-penstock-client": "8"}
    answers = [get(mesh, client="other", headers=forged) for _ in range(3)]
    assert [a.status for a in answers] == [200, 200, 429]
    assert "X-Penstock-Client" not in answers[0].json["headers"]


def test_a_rate_limit_for_each_address(mesh: Mesh) -> None:
    apply(mesh, http_policy("p", API, rateLimit={"requests": 1, "interval": "61s", "per": "Address"}))
    for client in ("client", "twin", "other"):
        forged = {"x-forwarded-for": "10.9.9.9"}
        assert [get(mesh, client=client, headers=forged).status for _ in range(2)] == [200, 429]


def test_a_rate_limit_of_a_rule_and_its_refill(mesh: Mesh) -> None:
    rules = [
        {"name": "slow", "matches": [{"path": {"value": "/slow"}}], "backendRefs": [to("api")]},
        {"backendRefs": [to("api")]},
    ]
    limit = {"requests": 1, "interval": "500ms", "burst": 2}
    apply(
        mesh, route("r", "api", *rules), http_policy("p", {**ROUTE, "sectionName": "slow"}, rateLimit=limit)
    )
    with Http(mesh["client"], mesh.vip("api"), 80) as connection:
        assert [connection.ask("/slow").status for _ in range(3)] == [200, 200, 429]
        assert {connection.ask("/").status for _ in range(10)} == {200}
        until("a token came", lambda: connection.ask("/slow").status == 200, 3)


# --- faults -----------------------------------------------------------------------------------------


def test_faults(mesh: Mesh) -> None:
    """On a connection that is open: next request, new rule. Faults need no right, and give none."""
    closed = policy("closed", select(tier="api"), ingress=[{"fromEndpoints": [select(app="other")]}])
    apply(mesh, http_policy("p", API, fault={"abort": {"httpStatus": 418}}))
    with Http(mesh["client"], mesh.vip("api"), 80) as connection:
        assert connection.ask().status == 418
        apply(mesh, http_policy("p", API, fault={"delay": {"duration": "400ms"}}))
        began = monotonic()
        assert connection.ask().status == 200
        # Envoy counts from when its event loop woke up, a little before the request was read.
        assert monotonic() - began >= 0.35
        apply(mesh, http_policy("p", API, fault={"abort": {"httpStatus": 503, "percent": 50}}))
        assert set(Counter(connection.ask().status for _ in range(60))) == {200, 503}
        apply(mesh, http_policy("p", API, fault={"abort": {"httpStatus": 403}}))
        assert connection.ask().body != b"Access denied\r\n"
        apply(mesh, closed, http_policy("p", API, fault={"delay": {"duration": "10ms"}}))
    assert (get(mesh).status, get(mesh, client="other").status) == (403, 200)


# --- JWT --------------------------------------------------------------------------------------------

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def jwks(key: rsa.RSAPrivateKey = KEY) -> str:
    numbers = key.public_key().public_numbers()
    n, e = (b64(v.to_bytes((v.bit_length() + 7) // 8, "big")) for v in (numbers.n, numbers.e))
    return json.dumps({"keys": [{"kty": "RSA", "alg": "RS256", "kid": "k", "n": n, "e": e}]})


def token(key: rsa.RSAPrivateKey = KEY, **claims: Any) -> dict[str, str]:
    claims = {"iss": "https://issuer.example", "sub": "me", "exp": int(time.time()) + 600, **claims}
    head = b64(json.dumps({"alg": "RS256", "typ": "JWT", "kid": "k"}).encode())
    body = f"{head}.{b64(json.dumps(claims).encode())}"
    signed = key.sign(body.encode(), padding.PKCS1v15(), hashes.SHA256())
    return {"authorization": f"Bearer {body}.{b64(signed)}"}


def provider(**more: Any) -> dict[str, Any]:
    return {"name": "main", "issuer": "https://issuer.example", "jwks": {"inline": jwks()}, **more}


def test_jwt(mesh: Mesh) -> None:
    claims = [{"claim": "sub", "header": "x-sub"}]
    rules = provider(audiences=["shop"], claimsToHeaders=claims)
    apply(mesh, http_policy("p", API, jwt={"providers": [rules]}))
    good = token(aud="shop")
    answer = get(mesh, headers={**good, "x-sub": "forged"})
    assert answer.status == 200
    got = answer.json["headers"]
    assert got["X-Sub"] == ["me"]
    assert "Authorization" not in got
    bad = [
        {},
        {"authorization": "Bearer abc"},
        token(STRANGER, aud="shop"),
        token(aud="shop", exp=1),
        token(aud="shop", iss="https://other.example"),
    ]
    assert [get(mesh, headers=h).status for h in bad] == [401] * len(bad)
    assert get(mesh, headers=token(aud="else")).status == 403
    # In a query it would end up in logs: there it is no token.
    assert get(mesh, f"/?access_token={good['authorization'][7:]}").status == 401


def test_jwt_is_optional_or_forwarded_if_said(mesh: Mesh) -> None:
    claims = [{"claim": "sub", "header": "x-sub"}]
    rules = provider(forward=True, claimsToHeaders=claims)
    apply(mesh, http_policy("p", API, jwt={"providers": [rules], "optional": True}))
    assert get(mesh, headers=token()).json["headers"]["Authorization"]
    assert get(mesh, headers=token(STRANGER)).status == 401
    without = get(mesh, headers={"x-sub": "forged"})
    assert without.status == 200
    assert "X-Sub" not in without.json["headers"]


def test_jwt_keys_from_objects(mesh: Mesh) -> None:
    """Keys that are not there close their target; they open it when they come, on the same connection."""
    ref = http_policy("p", API, jwt={"providers": [provider(jwks={"ref": {"name": "keys"}})]})
    keys = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "keys"}, "data": {"jwks": jwks()}}
    apply(mesh, ref)
    with Http(mesh["client"], mesh.vip("api"), 80) as connection:
        assert connection.ask(headers=token()).status == 500
        apply(mesh, ref, keys)
        assert connection.ask(headers=token()).status == 200
        assert connection.ask().status == 401
        apply(mesh, ref, {**keys, "data": {"jwks": jwks(STRANGER)}})
        assert connection.ask(headers=token()).status == 401
        secret = {**keys, "kind": "Secret", "data": {"jwks": base64.b64encode(jwks().encode()).decode()}}
        asking = provider(jwks={"ref": {"kind": "Secret", "name": "keys"}})
        apply(mesh, http_policy("p", API, jwt={"providers": [asking]}), secret)
        assert connection.ask(headers=token()).status == 200


def test_jwt_keys_from_a_service(mesh: Mesh) -> None:
    remote = {"backendRef": {"name": "asked", "port": 80}, "path": "/keys"}
    apply(mesh, http_policy("p", API, jwt={"providers": [provider(jwks={"remote": remote})]}))
    assert get(mesh, headers=token()).status == 401
    with Scripted(mesh["asked"], 8080, body=jwks().encode()) as keys:
        until("the keys were fetched", lambda: get(mesh, headers=token()).status == 200)
        assert keys.heads[0].startswith("GET /keys ")
        # The thread that fetches ahead hands them to all others.
        assert keys.wait(2)
        until("all have them", lambda: {get(mesh, headers=token()).status for _ in range(20)} == {200})
    assert {get(mesh, headers=token()).status for _ in range(20)} == {200}


# --- external authorization -------------------------------------------------------------------------


def asks(protocol: str, **more: Any) -> dict[str, Any]:
    port = 90 if protocol == "GRPC" else 80
    return {"protocol": protocol, "backendRef": {"name": "asked", "port": port}, **more}


def test_external_authorization_by_http(mesh: Mesh) -> None:
    """As the filter of an HTTPRoute. Where nobody answers, nobody passes."""
    auth = asks("HTTP", http={"path": "/may", "allowedHeaders": ["x-who"]})
    rule = {"filters": [{"type": "ExternalAuth", "externalAuth": auth}], "backendRefs": [to("api")]}
    apply(mesh, route("r", "api", rule))
    with Http(mesh["client"], mesh.vip("api"), 80) as connection:
        assert connection.ask().status == 403
        with Scripted(mesh["asked"], 8080, lambda n: 200 if n % 2 == 0 else 401) as asked:
            assert connection.ask("/x", headers={"x-who": "me", "x-more": "1"}).status == 200
            assert connection.ask("/x").status == 401
            assert asked.heads[0].startswith("GET /may/x ")
            assert "x-who: me" in asked.heads[0].lower()
            assert "x-more" not in asked.heads[0].lower()
        assert connection.ask().status == 403
        # What is shown of a body is all of it or nothing; a null that is written is as good as left out.
        auth |= {"forwardBody": {"maxSize": 4}, "http": {"allowedHeaders": None}}
        apply(mesh, route("r", "api", rule))
        with Scripted(mesh["asked"], 8080, lambda _: 200):
            assert connection.ask(method="POST", body=b"four").status == 200
            assert connection.ask(method="POST", body=b"longer").status == 413


class _Authority(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, details: Any) -> Any:
        def check(request: external_auth_pb2.CheckRequest, _: Any) -> external_auth_pb2.CheckResponse:
            response = external_auth_pb2.CheckResponse()
            if request.attributes.request.http.headers.get("x-who") == "me":
                response.ok_response.headers.add().header.key = "x-role"
                response.ok_response.headers[0].header.value = "user"
            else:
                response.status.code = code_pb2.PERMISSION_DENIED
                response.denied_response.status.code = 403
                response.denied_response.body = "not you"
            return response

        return grpc.unary_unary_rpc_method_handler(
            check,
            external_auth_pb2.CheckRequest.FromString,
            external_auth_pb2.CheckResponse.SerializeToString,
        )


@contextmanager
def authority(mesh: Mesh) -> Iterator[None]:
    server = grpc.server(futures.ThreadPoolExecutor(2), handlers=[_Authority()])
    with lab.entered(mesh["asked"].netns):
        assert server.add_insecure_port("0.0.0.0:9000") == 9000
        server.start()
    try:
        yield
    finally:
        server.stop(None).wait()


def test_external_authorization_by_grpc(mesh: Mesh) -> None:
    """Headers that it adds are judged like all others, and its word gives no right."""
    http = [{"path": "/open.*", "headers": ["x-role: user"]}]
    guarded = policy(
        "in",
        select(tier="api"),
        ingress=[{"fromEndpoints": [select(app="client")], "toPorts": [ports(8080, http=http)]}],
    )
    apply(mesh, http_policy("p", API, extAuth=asks("GRPC")), guarded)
    assert get(mesh, "/open").status == 403
    with authority(mesh):
        # A channel that could not connect waits before it tries again.
        until("it is asked", lambda: get(mesh, "/open", headers={"x-who": "me"}).status == 200)
        refused = get(mesh, "/open", headers={"x-who": "you"})
        assert (refused.status, refused.body) == (403, b"not you")
        closed = get(mesh, "/closed", headers={"x-who": "me"})
        assert (closed.status, closed.body) == (403, b"Access denied\r\n")


# --- compression, sessions --------------------------------------------------------------------------


def test_compression(mesh: Mesh) -> None:
    apply(mesh, http_policy("p", API, compression={"minSize": 100}))
    for accepted, used in (("gzip", "gzip"), ("br", "br"), ("zstd", "zstd"), ("identity", None)):
        answer = get(mesh, headers={"accept-encoding": accepted})
        assert (answer.status, answer.headers.get("content-encoding")) == (200, used)
        assert "accept-encoding" in answer.headers["vary"].lower()
    apply(mesh, http_policy("p", API, compression={"types": ["zstd"], "minSize": 100_000}))
    assert "content-encoding" not in get(mesh, headers={"accept-encoding": "zstd"}).headers


@pytest.mark.parametrize("kind", ["Cookie", "Header"])
def test_session_persistence(mesh: Mesh, kind: str) -> None:
    """By a rule's own field. Who names a forbidden endpoint, or a foreign one, gains nothing."""
    kept = {"sessionName": "x-seat", "type": kind}
    apply(mesh, route("r", "api", {"backendRefs": [to("api")], "sessionPersistence": kept}))
    first = get(mesh)

    def seat(answer: Answer) -> dict[str, str]:
        if kind == "Header":
            return {"x-seat": answer.headers["x-seat"]}
        return {"cookie": answer.headers["set-cookie"].partition(";")[0]}

    held = seat(first)
    assert {get(mesh, headers=held).pod for _ in range(10)} == {first.pod}
    forged = base64.b64encode(f"{mesh['asked'].address()}:8080".encode()).decode()
    named = {"x-seat": forged} if kind == "Header" else {"cookie": f'x-seat="{forged}"'}
    with Scripted(mesh["asked"], 8080) as foreign:
        assert {get(mesh, headers=named).status for _ in range(5)} == {200}
        assert not foreign.heads
    closed = policy("closed", select(app=first.pod), ingress=[{}])
    rule = {"backendRefs": [to("api")], "sessionPersistence": kept}
    apply(mesh, route("r", "api", rule), closed)
    assert {get(mesh, headers=held).status for _ in range(5)} == {403}


def test_session_persistence_of_a_service(mesh: Mesh) -> None:
    kept = {
        "apiVersion": "gateway.networking.x-k8s.io/v1alpha1",
        "kind": "XBackendTrafficPolicy",
        "metadata": {"name": "kept"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "api"}],
            "sessionPersistence": {
                "absoluteTimeout": "1h",
                "cookieConfig": {"lifetimeType": "Permanent"},
            },
        },
    }
    apply(mesh, route("r", "api", {"backendRefs": [to("api")]}), kept)
    first = get(mesh)
    cookie = first.headers["set-cookie"]
    assert "Max-Age=3600" in cookie
    held = {"cookie": cookie.partition(";")[0]}
    assert {get(mesh, headers=held).pod for _ in range(10)} == {first.pod}


# --- Gateways, and whose policy counts --------------------------------------------------------------


def test_gateways_obey_too(mesh: Mesh) -> None:
    """A listener's policy holds for its routes; a route's own part takes that part's place, and no other."""
    door = (
        gateway("gw"),
        http_route("r", "gw", {"matches": [{"path": {"value": "/r"}}], "backendRefs": [to("api")]}),
        http_route("s", "gw", {"backendRefs": [to("api")]}),
    )
    whole = http_policy(
        "whole",
        {"kind": "Gateway", "name": "gw", "sectionName": "http"},
        fault={"abort": {"httpStatus": 418}},
        compression={"minSize": 100},
        rateLimit={"requests": 1, "interval": "60s", "per": "Address"},
    )
    own = http_policy("own", ROUTE, fault={"delay": {"duration": "1ms"}}, rateLimit={"requests": 100})
    apply(mesh, *door, whole, own)
    shown = mesh.on("client").call(
        "get", kind="gateway", object_name="gw", namespace="default", all_namespaces=False
    )
    address = shown["status"]["addresses"][0]["value"]
    answers = [ask(mesh["client"], address, 80, "/r", headers={"accept-encoding": "gzip"}) for _ in range(3)]
    assert [(a.status, a.headers.get("content-encoding")) for a in answers] == [(200, "gzip")] * 3
    assert ask(mesh["client"], address, 80, "/").status == 418
    found = mesh.on("client").call(
        "get", kind="httppolicy", object_name="whole", namespace="default", all_namespaces=False
    )
    (ancestor,) = found["status"]["ancestors"]
    assert ancestor["ancestorRef"]["kind"] == "Gateway"
    assert {c["type"]: c["status"] for c in ancestor["conditions"]} == {
        "Accepted": "True",
        "ResolvedRefs": "True",
    }


def test_of_two_policies_the_older_counts(mesh: Mesh) -> None:
    one = http_policy("a", API, fault={"abort": {"httpStatus": 418}})
    two = http_policy("b", API, fault={"abort": {"httpStatus": 503}})
    apply(mesh, one, two)
    assert get(mesh).status == 418
    found = mesh.on("client").call(
        "get", kind="httppolicy", object_name="b", namespace="default", all_namespaces=False
    )
    (ancestor,) = found["status"]["ancestors"]
    assert next((c["type"], c["reason"]) for c in ancestor["conditions"]) == ("Accepted", "Conflicted")
