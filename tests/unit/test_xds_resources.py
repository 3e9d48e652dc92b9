"""Messages become bytes with versions that stand for the content and nothing else."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2

from penstock.xds.snapshot import TypeUrl, resource


def cluster(*keys: str, kind: int = cluster_pb2.Cluster.EDS, service: str = "") -> cluster_pb2.Cluster:
    message = cluster_pb2.Cluster(name="c", type=kind)
    message.eds_cluster_config.service_name = service
    for key in keys:
        message.typed_extension_protocol_options[key].type_url = key
    return message


def test_type_name_and_body() -> None:
    message = endpoint_pb2.ClusterLoadAssignment(cluster_name="e")
    made = resource("e", message)
    assert (made.name, made.type_url, made.endpoints) == ("e", TypeUrl.EDS, "")
    assert endpoint_pb2.ClusterLoadAssignment.FromString(made.body) == message


def test_versions_do_not_depend_on_the_order_in_which_a_map_was_filled() -> None:
    keys = [f"key{number}" for number in range(20)]
    one, other = resource("c", cluster(*keys)), resource("c", cluster(*reversed(keys)))
    assert one == other
    assert one.version != resource("c", cluster(*keys[1:])).version


def test_a_cluster_tells_the_name_of_its_endpoints() -> None:
    assert resource("c", cluster()).endpoints == "c"
    assert resource("c", cluster(service="s")).endpoints == "s"
    assert resource("c", cluster(kind=cluster_pb2.Cluster.STATIC)).endpoints == ""


def test_versions_are_stable_over_time() -> None:
    # Written down once: a change of this value makes every Envoy warm everything again at an upgrade.
    assert resource("e", endpoint_pb2.ClusterLoadAssignment(cluster_name="e")).version == "9a21f8e749a082db"
