"""Endpoints and rights on the way from one model to the next: nobody is chosen without, nobody gains any."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from worlds import policy, read, workload

from penstock.planner import Planner
from penstock.routing.model import HostTable, ProxyCluster, ProxyEndpoint, ProxyModel, Rights, ServiceTable
from penstock.routing.transition import between


def end(number: int, policy_class: str = "", weight: int = 1) -> ProxyEndpoint:
    return ProxyEndpoint(ip_address(f"10.0.0.{number}"), 80, policy_class or f"c{number}", weight=weight)


def model(*endpoints: ProxyEndpoint) -> ProxyModel:
    rights = (Rights(None, tuple(sorted({e.policy_class for e in endpoints}))),)
    return ProxyModel(
        clusters=(ProxyCluster("c", 4, endpoints),),
        services=(ServiceTable("t", ip_address("10.96.0.1"), 80, (), rights),),
        tables=(HostTable("h", (), rights),),
    )


def on_the_way(old: ProxyModel, new: ProxyModel, *, same: bool = True) -> tuple[set[str], set[str]]:
    """The last numbers of the endpoints, and the classes that have rights in every table."""
    found = between(old, new, same_policies=same) or new
    classes = [{d for r in t.rights for d in r.destinations} for t in (*found.services, *found.tables)]
    assert classes[0] == classes[1]
    return {str(e.address)[-1] for e in found.clusters[0].endpoints}, classes[0]


def test_one_that_comes_waits_and_one_that_goes_is_gone() -> None:
    assert on_the_way(model(end(1)), model(end(1), end(2))) == ({"1"}, {"c1", "c2"})
    assert on_the_way(model(end(1), end(2)), model(end(1))) == ({"1"}, {"c1"})
    assert on_the_way(model(end(1), end(2)), model(end(2), end(3))) == ({"2"}, {"c2", "c3"})
    assert on_the_way(model(end(1)), model()) == (set(), set())
    assert on_the_way(model(), model(end(1))) == (set(), {"c1"})


def test_where_all_are_replaced_the_old_ones_serve_until_the_new_ones_may() -> None:
    assert on_the_way(model(end(1)), model(end(2))) == ({"1"}, {"c1", "c2"})


def test_a_policy_that_changes_lets_nobody_keep_a_right() -> None:
    assert on_the_way(model(end(1)), model(end(2)), same=False) == (set(), {"c2"})


def test_an_address_that_is_somebody_else_now_is_not_kept() -> None:
    assert on_the_way(model(end(1)), model(end(1, "other"))) == (set(), {"other"})
    assert on_the_way(model(end(1), end(2)), model(end(1, "other"), end(3))) == ({"2"}, {"c2", "c3", "other"})


def test_a_weight_or_nothing_needs_no_way() -> None:
    assert between(model(end(1)), model(end(1, weight=7)), same_policies=True) is None
    assert between(model(end(1)), model(end(1)), same_policies=True) is None


def test_workloads_at_their_own_address_wait_as_well() -> None:
    old, new = ProxyModel(workloads=(end(1), end(2))), ProxyModel(workloads=(end(2), end(3)))
    found = between(old, new, same_policies=True)
    assert found is not None
    assert found.workloads == (end(2),)


def test_plans_know_whether_their_policies_are_the_same() -> None:
    """Services are what policies may refer to; one that does not is the same whatever they do."""
    text = workload("web", "10.244.1.11") + policy("{endpointSelector: {}, ingress: [{}]}")
    service = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n"
        "spec: {selector: {app: web}, ports: [{port: 80}]}\n---\n"
    )
    planner = Planner()
    world, first = planner.plan(read(text))
    documents = {**world.documents, **read(service).documents}
    world, second = planner.plan(replace(world, documents=documents))
    changed = read(policy("{endpointSelector: {}, ingress: [{fromEntities: [world]}]}")).documents
    _, third = planner.plan(replace(world, documents={**documents, **changed}))
    assert first.same_policies(second)
    assert not second.same_policies(third)


def test_nobody_waits_where_tables_keep_the_rights_that_they_have() -> None:
    old = model(end(1, "a"), end(2, "a"))
    new = model(end(3, "a"))
    assert between(old, new, same_policies=True) is None
    # A table more says nothing of the others; one that gets other rights does.
    more = replace(new, tables=(*new.tables, HostTable("more", (), (Rights(None, ("b",)),))))
    assert between(old, more, same_policies=True) is None
    wider = replace(new, tables=(replace(new.tables[0], rights=(Rights(None, ("a", "b")),)),))
    assert between(old, wider, same_policies=True) is not None
