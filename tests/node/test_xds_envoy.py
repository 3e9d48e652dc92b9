"""The xDS server against the real Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence

import aiohttp
from envoy.config.cluster.v3 import cluster_pb2
from xds_bench import (
    ALL,
    BACKEND_A,
    BACKEND_B,
    LISTENER,
    OTHER_LISTENER,
    PATIENCE,
    Bench,
    ads,
    bench,
    cluster,
    endpoints,
    envoy,
    listener,
    roll,
    routes,
    snap,
    web_of,
)

from penstock.xds.order import Rollout
from penstock.xds.server import XdsServer
from penstock.xds.snapshot import Resource, Snapshot, TypeUrl, resource
from penstock.xds.watch import SyncState

__all__ = ["bench"]


async def test_cold_start_and_access_log(bench: Bench) -> None:
    server = await bench.serve(snap(*web_of("one", BACKEND_A)))
    outcome = await server.wait_acked(ALL, PATIENCE)
    assert outcome.ok, outcome
    assert await bench.get() == (200, "a")
    assert server.connected == 1
    (client,) = server.state()
    assert client.node_id == "xds-test"
    assert {status.state for items in client.types.values() for status in items} == {SyncState.SYNCED}
    record = await asyncio.wait_for(bench.records.get(), PATIENCE)
    assert (record.log_name, record.method, record.path, record.code) == ("web", "GET", "/", 200)
    assert record.destination == ("127.0.0.1", LISTENER)
    assert record.upstream == ("127.0.0.1", BACKEND_A)
    assert record.source[0] == "127.0.0.1"
    assert record.authority == f"127.0.0.1:{LISTENER}"
    assert (record.protocol, record.bytes_out, record.flags) == ("HTTP/1.1", 1, ())
    assert 0 < record.duration_us < PATIENCE * 1e6
    assert abs(record.time - time.time()) < 60
    assert (bench.directory / "xds.sock").stat().st_mode & 0o777 == 0o660


async def test_a_route_moves_to_a_new_cluster_without_a_failed_request(bench: Bench) -> None:
    server = await bench.serve(snap(*web_of("one", BACKEND_A)))
    assert (await server.wait_acked(ALL, PATIENCE)).ok
    async with bench.steady() as answers:
        for to, port in (("two", BACKEND_B), ("three", BACKEND_A), ("two", BACKEND_B)) * 5:
            await roll(server, snap(*web_of(to, port)))
            await bench.reaches({BACKEND_A: "a", BACKEND_B: "b"}[port])
    assert set(answers) == {(200, "a"), (200, "b")}
    assert await bench.clusters() == {"two"}


async def test_an_endpoint_change_is_acknowledged_and_in_force(bench: Bench) -> None:
    server = await bench.serve(snap(*web_of("one", BACKEND_A)))
    assert (await server.wait_acked(ALL, PATIENCE)).ok
    assert await bench.get() == (200, "a")
    (stage,) = Rollout(server.published, snap(*web_of("one", BACKEND_B))).stages()
    assert stage.await_types == (TypeUrl.EDS,)
    assert (await server.roll_to(stage, PATIENCE)).ok
    await bench.reaches("b")


async def test_a_changed_cluster_is_warm_at_its_acknowledgement(bench: Bench) -> None:
    one = web_of("one", BACKEND_A)
    server = await bench.serve(snap(*one))
    assert (await server.wait_acked(ALL, PATIENCE)).ok
    async with bench.steady() as answers:
        started = time.monotonic()
        await roll(server, snap(cluster("one", timeout=2), *one[1:]))
        assert time.monotonic() - started < 5
        gauge = "cluster_manager.warming_clusters"
        assert await bench.stats(gauge) == {gauge: 0}
    assert set(answers) == {(200, "a")}


def bad_clusters() -> Sequence[Resource]:
    invalid = cluster_pb2.Cluster(name="invalid", type=cluster_pb2.Cluster.EDS)
    invalid.eds_cluster_config.eds_config.CopyFrom(ads())
    invalid.connect_timeout.seconds = -1
    senseless = cluster_pb2.Cluster(name="senseless", type=cluster_pb2.Cluster.STATIC)
    senseless.load_assignment.cluster_name = "senseless"
    lb_endpoint = senseless.load_assignment.endpoints.add().lb_endpoints.add()
    lb_endpoint.endpoint.address.socket_address.address = "no-address"
    lb_endpoint.endpoint.address.socket_address.port_value = 1
    return resource("invalid", invalid), resource("senseless", senseless)


async def test_bad_resources_are_quarantined_and_the_others_work(bench: Bench) -> None:
    good = web_of("one", BACKEND_A)
    bad = (
        *bad_clusters(),
        listener("bad-routes", OTHER_LISTENER, "bad-routes"),
        routes("bad-routes", "one", regex="("),
    )
    more = [cluster("more"), endpoints("more", BACKEND_B)]
    server = await bench.serve(snap(*good, *more, *bad))
    outcome = await server.wait_acked(ALL, PATIENCE)
    assert outcome.done, outcome
    assert {refusal.name for refusal in outcome.errors} == {"invalid", "senseless", "bad-routes"}
    assert all(refusal.message for refusal in outcome.errors)
    assert await bench.get() == (200, "a")
    await roll_through(server, snap(*good, *more, *bad[:2]))
    async with bench.steady() as answers:
        await roll_through(server, snap(*web_of("more", BACKEND_B), *bad[:2]))
    assert {status for status, _ in answers} == {200}
    assert await bench.clusters() - {"senseless"} == {"more"}
    await bench.reaches("b")


async def roll_through(server: XdsServer, wanted: Snapshot) -> None:
    """Roll although something is in quarantine."""
    for stage in Rollout(server.published, wanted).stages():
        assert (await server.roll_to(stage, PATIENCE)).done


COUNTERS = (
    "cluster_manager.cluster_added",
    "cluster_manager.cluster_modified",
    "cluster_manager.cluster_removed",
    "listener_manager.listener_added",
    "listener_manager.listener_modified",
    "listener_manager.listener_removed",
    "cluster.one.update_success",
    "http.web.rds.web.config_reload",
)


async def test_another_server_with_the_same_snapshot_changes_nothing(bench: Bench) -> None:
    snapshot = snap(*web_of("one", BACKEND_A))
    server = await bench.serve(snapshot)
    assert (await server.wait_acked(ALL, PATIENCE)).ok
    before = await bench.stats(*COUNTERS)
    assert set(before) == set(COUNTERS)
    async with bench.steady() as answers:
        await server.stop()
        assert server.connected == 0
        again = await bench.serve(snap(*web_of("one", BACKEND_A)))
        assert (await again.wait_acked(ALL, PATIENCE)).ok
        assert await bench.stats(*COUNTERS) == before
        await roll(again, snap(*web_of("one", BACKEND_B)))
        await bench.reaches("b")
    assert {status for status, _ in answers} == {200}


async def test_another_server_with_another_snapshot_makes_before_it_breaks(bench: Bench) -> None:
    server = await bench.serve(snap(*web_of("one", BACKEND_A)))
    assert (await server.wait_acked(ALL, PATIENCE)).ok
    async with bench.steady() as answers:
        await server.stop()
        again = await bench.serve(snap(*web_of("two", BACKEND_B)))
        assert (await again.wait_acked(ALL, PATIENCE)).ok
        await bench.reaches("b")
    assert {status for status, _ in answers} == {200}
    assert await bench.clusters() == {"two"}


async def test_a_server_without_a_snapshot_takes_nothing_from_envoy(bench: Bench) -> None:
    server = await bench.serve(snap(*web_of("one", BACKEND_A)))
    assert (await server.wait_acked(ALL, PATIENCE)).ok
    await server.stop()
    empty = XdsServer(bench.directory / "xds.sock")
    bench.server = empty
    await empty.start()
    outcome = await empty.wait_acked(ALL, 1)
    assert not outcome.done
    assert empty.connected == 1
    assert await bench.get() == (200, "a")


async def test_an_envoy_that_was_killed_gets_everything_again(bench: Bench) -> None:
    server = await bench.serve(snap(*web_of("one", BACKEND_A)))
    assert (await server.wait_acked(ALL, PATIENCE)).ok
    bench.envoy.kill()
    await bench.envoy.wait()
    async with envoy(bench.directory):
        async with asyncio.timeout(PATIENCE):
            while True:
                outcome = await server.wait_acked(ALL, PATIENCE)
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    if outcome.ok and await bench.get() == (200, "a"):
                        break
        assert server.connected == 1
