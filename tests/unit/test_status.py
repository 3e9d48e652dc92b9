"""What status and get tell: states of objects, and the kinds' own status as their APIs define it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_routing_mesh import route
from test_routing_services import service
from worlds import identities, policy, read, settle, workload

from penstock.manifests.document import ObjectKey
from penstock.manifests.problem import Problem
from penstock.plan import Condition, Plan
from penstock.status import Transitions, objects, view
from penstock.world import World

KEY = ObjectKey("Workload", "default", "web")
NOON, LATER = 1_700_000_000.0, 1_700_000_060.0


@pytest.fixture
def small() -> tuple[World, Plan]:
    text = workload("web", "10.1.0.1") + workload("gone", "10.1.0.2")
    text += service("api", "{selector: {app: web}, ports: [{port: 80}]}")
    text += route("[{backendRefs: [{name: api, port: 80}]}]") + policy("{endpointSelector: {}, ingress: []}")
    return settle(read(text, absent=("gone",)))


def _states(listed: list[dict[str, Any]]) -> dict[str, str]:
    return {f"{o['kind']}/{o['name']}": o["state"] for o in listed}


def test_states(small: tuple[World, Plan]) -> None:
    world, plan = small
    assert _states(objects(world.documents, (), plan, in_force=True)) == {
        "Workload/web": "in force",
        "Workload/gone": "pending",
        "Service/api": "in force",
        "HTTPRoute/r": "in force",
        "CiliumNetworkPolicy/p": "in force",
    }
    assert set(_states(objects(world.documents, (), plan, in_force=False)).values()) == {"applying"}


def test_what_an_object_waits_for_is_said(small: tuple[World, Plan]) -> None:
    world, plan = small
    gone = next(o for o in objects(world.documents, (), plan, in_force=True) if o["name"] == "gone")
    assert gone["message"] == "network namespace /run/netns/gone is absent"
    assert gone["file"] == "test.yaml"
    assert gone["line"] > 1


def _problem(**more: str) -> Problem:
    return Problem(file="new.yaml", line=3, message="is wrong", kind="Workload", namespace="default", **more)  # type: ignore[arg-type]


def test_a_refused_object_tells_whether_its_last_good_version_holds(small: tuple[World, Plan]) -> None:
    world, plan = small
    problems = (_problem(name="web"), _problem(name="fresh"))
    found = {o["name"]: o for o in objects(world.documents, problems, plan, in_force=True)}
    assert (found["web"]["state"], found["web"]["last_good"]) == ("refused", "in force")
    assert (found["fresh"]["state"], found["fresh"]["last_good"]) == ("refused", "none")
    assert "new.yaml:3" in found["fresh"]["message"]
    assert found["web"]["generation"] == 1


def test_documents_without_a_name_are_told_apart(small: tuple[World, Plan]) -> None:
    _, plan = small
    problems = (_problem(), replace(_problem(), line=9))
    assert len(objects({}, problems, plan, in_force=True)) == 2


def test_warnings_refuse_nothing(small: tuple[World, Plan]) -> None:
    world, plan = small
    problem = replace(_problem(name="web"), severity="warning")
    assert _states(objects(world.documents, (problem,), plan, in_force=True))["Workload/web"] == "in force"


# --- conditions --------------------------------------------------------------------------------------------


def test_a_transition_is_remembered_until_the_condition_changes() -> None:
    transitions = Transitions()
    ready = Condition("Ready", True, "Attached")
    first = transitions.of(KEY, "", ready, NOON)
    assert first == "2023-11-14T22:13:20Z"
    assert transitions.of(KEY, "", replace(ready, message="said otherwise"), LATER) == first
    assert transitions.of(KEY, "", replace(ready, status=False), LATER) == "2023-11-14T22:14:20Z"
    # Another parent's condition of the same name has a time of its own.
    assert transitions.of(KEY, "1", ready, LATER) == "2023-11-14T22:14:20Z"


def _view(world: World, plan: Plan, kind: str, name: str, *, in_force: bool = True) -> dict[str, Any]:
    document = world.documents[ObjectKey(kind, "default", name)]
    return view(world, plan, document, Transitions(), NOON, in_force=in_force)


def test_a_workload_as_it_is(small: tuple[World, Plan]) -> None:
    world, plan = small
    shown = _view(world, plan, "Workload", "web")
    assert shown["metadata"] == {
        "name": "web",
        "namespace": "default",
        "labels": {"app": "web"},
        "generation": 1,
    }
    assert shown["status"]["identity"] == identities(world)["web"]
    assert shown["status"]["addresses"] == ["10.1.0.1"]
    (condition,) = shown["status"]["conditions"]
    assert condition == {
        "type": "Ready",
        "status": "True",
        "reason": "Attached",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2023-11-14T22:13:20Z",
    }


def test_a_service_shows_the_address_that_it_was_given(small: tuple[World, Plan]) -> None:
    world, plan = small
    shown = _view(world, plan, "Service", "api")
    assert shown["spec"]["clusterIP"] == world.allocations.vips["default/api/4"]
    assert shown["spec"]["clusterIPs"] == [shown["spec"]["clusterIP"]]


def test_a_route_shows_each_parent(small: tuple[World, Plan]) -> None:
    world, plan = small
    (parent,) = _view(world, plan, "HTTPRoute", "r")["status"]["parents"]
    assert parent["parentRef"] == {"group": "", "kind": "Service", "name": "api", "namespace": "default"}
    assert parent["controllerName"] == "penstock.dev/gateway-controller"
    states = {c["type"]: c["status"] for c in parent["conditions"]}
    assert states == {"Accepted": "True", "ResolvedRefs": "True", "Programmed": "True"}
    (parent,) = _view(world, plan, "HTTPRoute", "r", in_force=False)["status"]["parents"]
    states = {c["type"]: c["status"] for c in parent["conditions"]}
    assert states == {"Accepted": "True", "ResolvedRefs": "True", "Programmed": "False"}


def test_a_policy_shows_that_it_is_valid(small: tuple[World, Plan]) -> None:
    world, plan = small
    (condition,) = _view(world, plan, "CiliumNetworkPolicy", "p")["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("Valid", "True")
