"""What a change of manifests would do, told before it is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from test_gateway_golden import API, BACKENDS, CERTIFICATE, DATAGRAMS, INGRESS, gateway, rule, stream
from test_gateway_golden import route as gateway_route
from test_routing_mesh import PEOPLE, route
from worlds import NODE, policy, read

from penstock.cli.diff import diff
from penstock.diff import differences, planned

ONE = PEOPLE + route("[{backendRefs: [{name: v1, port: 80, weight: 9}, {name: v2, port: 80}]}]")
CLOSED = policy(
    "{endpointSelector: {matchLabels: {app: v1}}, ingress: [{fromEndpoints: [{matchLabels: {app: v2}}],"
    " toPorts: [{ports: [{port: 8080, protocol: TCP}]}]}]}",
    name="closed",
)


def change(before: str, after: str) -> dict[str, Any]:
    side = planned(read(before).documents, NODE)
    return differences(side, planned(read(after).documents, NODE, side))


def test_nothing() -> None:
    found = change(ONE, "# a comment\n" + ONE)
    assert (found["changed"], found["objects"], found["kernel"], found["envoy"]) == (False, [], [], [])


def test_a_weight_is_one_field_of_each_family_s_table() -> None:
    found = change(ONE, ONE.replace("weight: 9", "weight: 5"))
    assert [(o["change"], o["kind"], o["name"]) for o in found["objects"]] == [("changed", "HTTPRoute", "r")]
    assert found["kernel"] == []
    assert {(e["change"], e["type"]) for e in found["envoy"]} == {("changed", "RouteConfiguration")}
    fields = [f for e in found["envoy"] for f in e["fields"]]
    assert {(f["field"].rpartition(".")[2], f["before"], f["after"]) for f in fields} == {("weight", 9, 5)}


def test_a_policy_closes_what_was_open() -> None:
    found = change(ONE, ONE + CLOSED)
    texts = [(k["change"], k["table"], k["entry"], k["after"]) for k in found["kernel"]]
    by = "CiliumNetworkPolicy default/closed spec.ingress[0].toPorts[0]"
    assert ("added", "policy", "default/v1 ingress from default/v2 TCP 8080", f"ALLOW by {by}") in texts
    back = change(ONE + CLOSED, ONE)
    assert ("removed", "default/v1 ingress from default/v2 TCP 8080") in [
        (k["change"], k["entry"]) for k in back["kernel"]
    ]


def test_a_route_that_goes_takes_its_way_with_it() -> None:
    found = change(ONE, PEOPLE)
    service = next(k for k in found["kernel"] if k["table"] == "services" and "." in k["entry"])
    assert "steered to Envoy" in service["before"]
    assert "translated" in service["after"]
    assert ("removed", "RouteConfiguration", "default/api:80/4") in [
        (e["change"], e["type"], e["name"]) for e in found["envoy"]
    ]


def test_numbers_that_were_given_out_stay() -> None:
    more = "\n---\n".join((ONE, "apiVersion: v1\nkind: Namespace\nmetadata: {name: aaa}\n"))
    assert change(ONE, more)["kernel"] == []


def test_what_would_wait_is_told() -> None:
    found = change(ONE, ONE.replace("name: v2, port: 80}", "name: nobody, port: 80}"))
    (waiting,) = found["pending"]
    assert (waiting["kind"], waiting["name"]) == ("HTTPRoute", "r")
    assert "nobody" in waiting["message"]


def run(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(diff, [str(a) for a in arguments], standalone_mode=False)
    assert result.exception is None, result.exception
    return result


def test_two_directories(tmp_path: Path) -> None:
    for name, text in (("old", ONE), ("new", ONE + CLOSED)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all.yaml").write_text(text)
    old, new = tmp_path / "old", tmp_path / "new"
    result = run("--from", old, "-f", new)
    assert result.return_value == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("+ CiliumNetworkPolicy default/closed (")
    assert any(line.startswith("kernel: ") for line in lines)
    same = run("--from", old, "-f", old)
    assert (same.return_value, same.stdout) == (0, "nothing would change\n")


def test_a_refused_manifest(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {prots: []}\n"
    )
    result = run("--from", tmp_path, "-f", tmp_path)
    assert result.return_value == 2
    assert result.stdout.startswith("refused: ")
    assert 'did you mean "ports"?' in result.stdout


def envoy(found: dict[str, Any]) -> set[tuple[str, str, str]]:
    return {(e["change"], e["type"], e["name"]) for e in found["envoy"]}


def test_a_gateway_comes() -> None:
    found = change(BACKENDS, BACKENDS + gateway() + gateway_route(rule()))
    assert {(o["change"], o["kind"]) for o in found["objects"]} == {
        ("added", "Gateway"),
        ("added", "HTTPRoute"),
    }
    (served,) = (k for k in found["kernel"] if k["table"] == "services")
    assert (served["entry"], served["before"]) == ("10.98.0.1:80/TCP", None)
    assert served["after"] == "gateway/default/gw:80/TCP is Envoy's own address and port"
    own = [(k["change"], k["entry"]) for k in found["kernel"] if k["table"] == "addresses"]
    assert ("added", "10.98.0.1") in own
    assert {
        ("added", "Listener", "gateway/default/gw:80/TCP"),
        ("added", "RouteConfiguration", "gateway/default/gw:80/TCP"),
        ("added", "Cluster", "default/api:80/4/edge"),
    } <= envoy(found)


def test_a_route_of_a_gateway_is_a_matter_of_envoy_alone() -> None:
    before = BACKENDS + gateway() + gateway_route(rule(backends="{name: api, port: 80, weight: 9}"))
    found = change(before, before.replace("weight: 9", "weight: 5"))
    assert found["kernel"] == []
    assert envoy(found) == set()
    found = change(before, before.replace("weight: 9}", "weight: 9}, {name: other, port: 80}"))
    assert found["kernel"] == []
    assert ("changed", "RouteConfiguration", "gateway/default/gw:80/TCP") in envoy(found)


def test_streams_and_datagrams() -> None:
    listeners = gateway("{name: t, port: 90, protocol: TCP}", "{name: u, port: 53, protocol: UDP}")
    ways = stream("TCPRoute", API) + stream("UDPRoute", "{name: dns, port: 53}", name="u")
    found = change(BACKENDS + DATAGRAMS + listeners, BACKENDS + DATAGRAMS + listeners + ways)
    assert {
        ("added", "Listener", "gateway/default/gw:90/TCP"),
        ("added", "Listener", "gateway/default/gw:53/UDP"),
        ("added", "Cluster", "default/api:80/4/edge/tcp"),
    } <= envoy(found)
    entries = {k["entry"] for k in found["kernel"] if k["table"] == "services"}
    assert entries == {"10.98.0.1:90/TCP", "10.98.0.1:53/UDP"}


def test_an_ingress_comes_and_goes() -> None:
    base = BACKENDS + CERTIFICATE
    found = change(base, base + INGRESS)
    assert {("added", "Listener", "ingress:80/TCP"), ("added", "Listener", "ingress:443/TCP")} <= envoy(found)
    assert {k["entry"].partition(":")[2] for k in found["kernel"] if k["table"] == "services"} == {
        "80/TCP",
        "443/TCP",
    }
    back = change(base + INGRESS, base)
    assert ("removed", "Listener", "ingress:443/TCP") in envoy(back)


def test_what_a_gateway_would_wait_for() -> None:
    listener = "{name: s, port: 443, protocol: HTTPS, tls: {certificateRefs: [{name: absent}]}}"
    found = change(BACKENDS, BACKENDS + gateway(listener))
    (waiting,) = found["pending"]
    assert (waiting["kind"], waiting["message"]) == ("Gateway", "there is no Secret default/absent")
