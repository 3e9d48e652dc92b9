"""A lab's file: what is filled in, and what is said where it is wrong."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.lab import LabSpecError, load
from penstock.manifests.kinds import Node, Workload

NODES = {
    "node-a": {"podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"]},
    "node-b": {"podCIDRs": ["10.244.2.0/24"]},
}


def lab(**fields: Any) -> dict[str, Any]:
    return {"name": "demo", "nodes": NODES, **fields}


def test_addresses_are_filled_in_by_the_order_of_the_file() -> None:
    spec = load(
        lab(
            workloads=[
                {"name": "one", "node": "node-a"},
                {"name": "two", "node": "node-b"},
                {"name": "three", "node": "node-a"},
            ]
        )
    )
    assert [[str(a) for a in w.addresses] for w in spec.workloads] == [
        ["10.244.1.10", "fd00:10:244:1::a"],
        ["10.244.2.10"],
        ["10.244.1.11", "fd00:10:244:1::b"],
    ]
    assert [[str(a) for a in n.addresses] for n in spec.nodes] == [
        ["192.168.77.1", "fd00:192:168:77::1"],
        ["192.168.77.2", "fd00:192:168:77::2"],
    ]


def test_an_address_that_is_given_is_not_given_again() -> None:
    spec = load(
        lab(
            workloads=[
                {"name": "first", "node": "node-b"},
                {"name": "fixed", "node": "node-b", "addresses": ["10.244.2.10"]},
            ]
        )
    )
    assert spec.workload("fixed").address() == ip_address("10.244.2.10")
    assert spec.workload("first").address() == ip_address("10.244.2.11")


def test_a_node_keeps_the_address_it_names_and_another_gets_the_next() -> None:
    nodes = {"node-a": {}, "node-b": {"address": "10.0.0.1"}}
    spec = load({"name": "demo", "underlay": "10.0.0.0/24", "nodes": nodes})
    assert [str(n.addresses[0]) for n in spec.nodes] == ["10.0.0.2", "10.0.0.1"]


def test_every_member_has_a_namespace_and_a_device_of_its_own() -> None:
    workloads = [
        {"name": name, "namespace": space, "node": "node-a"} for name in ("a", "b") for space in ("x", "y")
    ]
    spec = load(lab(workloads=workloads))
    assert len(set(spec.namespaces())) == len(spec.namespaces()) == 1 + 2 + 4
    devices = {w.device for w in spec.workloads}
    assert len(devices) == 4
    assert all(len(device) <= 15 for device in devices)


def test_the_documents_are_manifests_that_a_daemon_reads() -> None:
    spec = load(
        lab(
            workloads=[
                {
                    "name": "api",
                    "node": "node-a",
                    "labels": {"app": "api"},
                    "serviceAccountName": "api",
                    "ports": [{"containerPort": 8080, "name": "http"}],
                }
            ]
        )
    )
    first, second, third = spec.documents()
    node, workload = msgspec.convert(first, Node), msgspec.convert(third, Workload)
    assert node.metadata.name == "node-a"
    assert node.spec.pod_cidrs == NODES["node-a"]["podCIDRs"]
    assert [a.address for a in node.status.addresses] == ["192.168.77.1", "fd00:192:168:77::1"]
    assert second["metadata"]["name"] == "node-b"
    assert workload.metadata.labels == {"app": "api"}
    assert workload.spec.service_account_name == "api"
    assert workload.spec.netns == str(spec.workload("api").netns)
    assert workload.spec.addresses == ["10.244.1.10", "fd00:10:244:1::a"]
    assert workload.spec.ports[0].container_port == 8080


def test_commands_may_be_lines_or_lists() -> None:
    spec = load(lab(workloads=[{"name": "w", "node": "node-a", "run": ["nc -l '80 '", ["sleep", "1 2"]]}]))
    assert spec.workloads[0].run == (("nc", "-l", "80 "), ("sleep", "1 2"))


def test_a_name_in_two_namespaces_must_be_given_in_full() -> None:
    spec = load(
        lab(workloads=[{"name": "w", "namespace": space, "node": "node-a"} for space in ("one", "two")])
    )
    with pytest.raises(LookupError, match="one/w, two/w"):
        spec.workload("w")
    assert spec.workload("two/w").namespace == "two"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ":1: the file is empty"),
        ("name: demo\nnodes: [", ":2: "),
        ("name: demo\nnodes: {a: {}}\nname: again\n", ":3: name is there twice"),
        ("name: demo\nnodes: {a: {}}\nnode: 1\n", "unknown field `node`"),
        ("name: demo\nnodes: {a: {}}\nworkloads:\n- {name: w, node: a}\n- {name: w}\n", ":5: workloads[1]: "),
        ("name: Demo\nnodes: {a: {}}\n", ":1: name: 'Demo' is not a DNS label"),
        ("name: demo\nnodes: {}\n", ":2: nodes: a lab has at least one node"),
        ("name: demo\nnodes:\n  a: {podCIDRs: [10.0.0.1/24]}\n", ":3: nodes.a.podCIDRs[0]: "),
        (
            "name: demo\nnodes:\n  a: {podCIDRs: [10.0.0.0/24]}\n  b: {podCIDRs: [10.0.0.0/25]}\n",
            ":4: nodes.b.podCIDRs: 10.0.0.0/25 overlaps 10.0.0.0/24",
        ),
        ("name: demo\nnodes:\n  a: {address: 10.0.0.1}\n", ":3: nodes.a.address: 10.0.0.1 is not in"),
        ("name: demo\nunderlay: [10.0.0.0/24, 10.1.0.0/24]\nnodes: {a: {}}\n", ":2: underlay: takes one"),
        (
            "name: demo\nnodes: {a: {podCIDRs: [10.0.0.0/24]}}\nworkloads:\n- name: w\n  node: b\n",
            ":5: workloads[0].node: no node b; there is a",
        ),
        ("name: demo\nnodes: {a: {}}\nworkloads:\n- {name: w, node: a}\n", ":4: workloads[0]: no addresses"),
        (
            "name: demo\nnodes: {a: {podCIDRs: [10.0.0.0/28]}}\nworkloads:\n"
            + "".join(f"- {{name: w{i}, node: a}}\n" for i in range(6)),
            ":9: workloads[5]: 10.0.0.0/28 has no free address left",
        ),
        (
            "name: demo\nnodes: {a: {podCIDRs: [10.0.0.0/24]}}\nworkloads:\n"
            "- {name: w, node: a, addresses: [10.0.0.9]}\n- {name: v, node: a, addresses: [10.0.0.9]}\n",
            ":5: workloads[1].addresses: 10.0.0.9 is given twice",
        ),
        (
            "name: demo\nnodes: {a: {podCIDRs: [10.0.0.0/24]}}\nworkloads:\n"
            "- {name: w, node: a, run: ['a \"b']}\n",
            ":4: workloads[0].run[0]: No closing quotation",
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "lab.yaml"
    file.write_text(text)
    with pytest.raises(LabSpecError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}:")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(LabSpecError, match="No such file"):
        load(tmp_path / "none.yaml")
