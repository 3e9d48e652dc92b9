"""Records: names are put in when they come, and followers get each one once, in order."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from penstock.observe.flows import KEPT, QUEUE, Directory, Flows
from penstock.observe.reasons import Reason
from penstock.plan import Verdict
from penstock.redirect.layout import KernelEvent

EVENT = KernelEvent(
    time=5_000_000_000,
    source=ip_address("10.1.0.1"),
    destination=ip_address("10.96.0.1"),
    source_port=40000,
    destination_port=80,
    protocol=6,
    verdict=Verdict.ALLOW,
    reason=Reason.FORWARDED_LOCAL,
    tcp_flags=2,
    source_identity=300,
    destination_identity=2,
    rule=77,
    length=54,
    proxy_port=0,
    hook=1,
)
DIRECTORY = Directory(
    workloads={"10.1.0.1": "default/web"},
    identities={2: "world", 300: "default/web"},
    rules={77: "web.yaml:7 spec.ingress[0]"},
    services={("10.96.0.1", 80): "default/api"},
)


async def _last(flows: Flows, count: int) -> list[dict[str, Any]]:
    return [record async for record in flows.follow(count, keep_on=False)]


async def test_an_event_in_words() -> None:
    flows = Flows()
    flows.look_up(lambda: DIRECTORY)
    flows.kernel(EVENT)
    (record,) = await _last(flows, 10)
    assert record["source"] == {"address": "10.1.0.1", "port": 40000, "name": "default/web", "identity": 300}
    assert record["destination"] == {"address": "10.96.0.1", "port": 80, "name": "default/api", "identity": 2}
    assert (record["type"], record["protocol"], record["rule"]) == (
        "flow",
        "TCP",
        "web.yaml:7 spec.ingress[0]",
    )


@pytest.mark.parametrize(
    ("reason", "verdict", "shown"),
    [
        (Reason.FORWARDED_LOCAL, Verdict.ALLOW, "FORWARDED"),
        (Reason.REDIRECTED, Verdict.REDIRECT, "REDIRECTED"),
        (Reason.POLICY_DENIED_INGRESS, Verdict.DENY, "DROPPED"),
        (Reason.PROXY_NOT_READY, Verdict.DENY, "DROPPED"),
    ],
)
async def test_verdicts(reason: Reason, verdict: Verdict, shown: str) -> None:
    flows = Flows()
    flows.kernel(replace(EVENT, reason=reason, verdict=verdict))
    (record,) = await _last(flows, 1)
    assert (record["verdict"], record["reason"]) == (shown, reason.name)


async def test_what_is_not_known_is_shown_as_it_came() -> None:
    flows = Flows()
    flows.kernel(replace(EVENT, protocol=99, reason=63))
    (record,) = await _last(flows, 1)
    assert (record["protocol"], record["reason"], record["rule"]) == ("99", "REASON_NONE", "")
    assert record["source"]["name"] == ""


async def test_an_address_without_workload_is_called_after_its_identity() -> None:
    flows = Flows()
    flows.look_up(lambda: DIRECTORY)
    flows.kernel(replace(EVENT, destination=ip_address("203.0.113.9")))
    (record,) = await _last(flows, 1)
    assert record["destination"]["name"] == "world"


async def test_names_are_those_of_the_time() -> None:
    flows = Flows()
    flows.look_up(lambda: DIRECTORY)
    flows.kernel(EVENT)
    flows.look_up(lambda: Directory(workloads={"10.1.0.1": "default/other"}))
    flows.kernel(EVENT)
    assert [r["source"]["name"] for r in await _last(flows, 2)] == ["default/web", "default/other"]


async def test_the_last_ones_are_kept() -> None:
    flows = Flows()
    for length in range(KEPT + 10):
        flows.kernel(replace(EVENT, proxy_port=length))
    assert [r["proxy_port"] for r in await _last(flows, 3)] == [KEPT + 7, KEPT + 8, KEPT + 9]
    assert len(await _last(flows, KEPT * 2)) == KEPT
    assert await _last(flows, 0) == []


async def test_a_follower_gets_the_last_and_then_each_new_one() -> None:
    flows = Flows()
    flows.kernel(replace(EVENT, proxy_port=1))
    flows.kernel(replace(EVENT, proxy_port=2))
    following = flows.follow(1, keep_on=True)
    assert (await anext(following))["proxy_port"] == 2
    flows.kernel(replace(EVENT, proxy_port=3))
    async with asyncio.timeout(2):
        assert (await anext(following))["proxy_port"] == 3
    await following.aclose()  # type: ignore[attr-defined]
    flows.kernel(EVENT)
    assert flows.lost == 0


async def test_a_slow_follower_loses_and_holds_up_nobody() -> None:
    flows = Flows()
    flows.kernel(EVENT)
    following = flows.follow(1, keep_on=True)
    await anext(following)
    for _ in range(QUEUE + 5):
        flows.kernel(EVENT)
    assert flows.lost == 5
    await following.aclose()  # type: ignore[attr-defined]
