"""The lab against the real kernel: it connects what it should, nothing else, and leaves nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from penstock import lab
from penstock.lab import LabError, LabSpec, netns, resolver
from penstock.lab import lab as labs

LabFactory = Callable[[Mapping[str, Any]], LabSpec]
PENSTOCK = [sys.executable, "-m", "penstock.cli"]


def run(path: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    process = lab.run_in(path, argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, _ = process.communicate(timeout=20)
    return subprocess.CompletedProcess(argv, process.returncode, output)


def reaches(path: Path, address: Any) -> bool:
    return run(path, "ping", "-n", "-c1", "-W1", str(address)).returncode == 0


def penstock(*argv: str, code: int = 0) -> str:
    done = subprocess.run([*PENSTOCK, *argv], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


MINE = f"t{os.getpid()}x"
"""What the names of this run's labs begin with: others may have labs of their own on this machine."""


def machine() -> dict[str, Any]:
    """What a lab must not change: our names, mounts and records; this namespace's links and routes."""

    def names(directory: Path) -> list[str]:
        return sorted(n for n in os.listdir(directory) if n.startswith(MINE)) if directory.exists() else []

    return {
        "netns": names(netns.DIRECTORY),
        "records": names(labs.STATE),
        "resolvers": names(resolver.DIRECTORY),
        "mounts": [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if MINE in line],
        "links": sorted(os.listdir("/sys/class/net")),
        "routes": Path("/proc/net/route").read_text() + Path("/proc/net/ipv6_route").read_text(),
    }


@pytest.fixture
def six(make_lab: LabFactory, two_nodes: Mapping[str, Any]) -> LabSpec:
    """Two nodes, three workloads on each, with routes between the nodes' ranges."""
    workloads = [{"name": f"w{i}", "node": f"node-{'ab'[i // 3]}"} for i in range(6)]
    return make_lab({"nodes": two_nodes, "workloads": workloads, "routes": True})


def test_workloads_reach_each_other_in_both_families(six: LabSpec) -> None:
    here, neighbour, *_, afar = six.workloads
    for version in (4, 6):
        assert reaches(here.netns, neighbour.address(version))
        assert reaches(here.netns, afar.address(version))
        assert reaches(six.nodes[0].netns, here.address(version))


def test_the_first_packet_needs_no_second(six: LabSpec) -> None:
    """Proxy ARP delay and duplicate address detection would show as a first answer after 0.1–1 s."""
    output = run(six.workloads[2].netns, "ping", "-n", "-c1", "-W1", str(six.workloads[5].address(4))).stdout
    output += run(six.workloads[2].netns, "ping", "-n", "-c1", "-W1", str(six.workloads[5].address(6))).stdout
    times = [float(part.split()[0]) for part in output.split("time=")[1:]]
    assert len(times) == 2
    assert max(times) < 100


def test_nodes_reach_each_other_over_the_underlay(six: LabSpec) -> None:
    assert all(reaches(six.nodes[0].netns, address) for address in six.nodes[1].addresses)


def test_without_the_option_there_is_no_way_between_the_nodes_ranges(
    make_lab: LabFactory, two_nodes: Mapping[str, Any]
) -> None:
    spec = make_lab({"nodes": two_nodes, "workloads": [{"name": n, "node": f"node-{n}"} for n in ("a", "b")]})
    a, b = spec.workloads
    assert not reaches(a.netns, b.address(4))
    assert not reaches(a.netns, b.address(6))


@pytest.mark.parametrize("address", ["203.0.113.1", "2001:db8::1"])
def test_no_route_leaves_the_lab(six: LabSpec, address: str) -> None:
    for path in (six.nodes[0].netns, six.underlay_netns):
        looked_up = run(path, "ip", "route", "get", address)
        assert looked_up.returncode != 0, looked_up.stdout
    answer = run(six.workloads[0].netns, "ping", "-n", "-c1", "-W1", address)
    assert answer.returncode == 1
    assert "nreachable" in answer.stdout


def test_a_veth_looks_as_a_cni_plugin_makes_it(six: LabSpec) -> None:
    workload = six.workloads[0]
    inside = json.loads(run(workload.netns, "ip", "-j", "addr", "show", "dev", "eth0").stdout)[0]["addr_info"]
    assert {(a["local"], a["prefixlen"]) for a in inside if a["scope"] == "global"} == {
        (str(address), address.max_prefixlen) for address in workload.addresses
    }
    default = json.loads(run(workload.netns, "ip", "-j", "route", "show", "default").stdout)
    assert (default[0]["gateway"], default[0]["flags"]) == ("169.254.1.1", ["onlink"])
    node = six.node(workload.node)
    route = json.loads(run(node.netns, "ip", "-j", "route", "show", f"{workload.address(4)}/32").stdout)
    assert route[0]["dev"] == workload.device
    proxy_arp = run(node.netns, "cat", f"/proc/sys/net/ipv4/conf/{workload.device}/proxy_arp").stdout
    assert proxy_arp.strip() == "1"
    filters = run(node.netns, "sh", "-c", "cat /proc/sys/net/ipv4/conf/*/rp_filter").stdout
    assert set(filters.split()) == {"0"}


def test_who_enters_a_workload_asks_the_nodes_own_dns(six: LabSpec) -> None:
    """And a resolv.conf that somebody else has put there stays."""
    workload = six.workloads[0]
    path = resolver.DIRECTORY / workload.netns.name / "resolv.conf"
    seen = subprocess.run(
        ["ip", "netns", "exec", workload.netns.name, "cat", "/etc/resolv.conf"],
        capture_output=True, text=True, check=True, timeout=20,
    ).stdout.splitlines()  # fmt: skip
    assert seen[1:] == [
        "nameserver 10.96.0.10",
        "nameserver fd00:10:96::a",
        f"search {workload.namespace}.svc.cluster.local svc.cluster.local cluster.local",
    ]
    path.write_text("nameserver 192.0.2.1\n")
    try:
        resolver.write(workload)
        resolver.remove(workload.netns.name)
        assert path.read_text() == "nameserver 192.0.2.1\n"
    finally:
        path.unlink()
        path.parent.rmdir()


def test_down_leaves_nothing(make_lab: LabFactory, two_nodes: Mapping[str, Any]) -> None:
    before = machine()
    spec = make_lab(
        {
            "nodes": two_nodes,
            "workloads": [
                {"name": "w", "node": "node-a", "run": ["sh -c 'trap \"\" TERM; sleep 600 & wait'"]}
            ],
        }
    )
    stray = lab.run_in(spec.nodes[1].netns, ["sleep", "600"])
    running = netns.processes_in(spec.namespaces())
    assert len(running) == 3
    assert machine() != before

    assert lab.down(spec.name)
    assert stray.wait(timeout=5) != 0
    assert not [pid for pid in running if Path(f"/proc/{pid}/ns/net").exists()]
    assert machine() == before
    assert not lab.down(spec.name)


def test_a_lab_that_cannot_be_finished_leaves_nothing(two_nodes: Mapping[str, Any]) -> None:
    before = machine()
    workload = {"name": "w", "node": "node-a", "ports": [{"containerPort": 80}], "run": ["echo no such luck"]}
    spec = lab.load({"name": MINE + "bad", "nodes": two_nodes, "workloads": [workload]})
    with pytest.raises(LabError, match=r"default/w ended without serving TCP 80\nno such luck"):
        lab.up(spec)
    assert machine() == before


def test_what_a_crash_left_half_made_goes_with_the_next_up(two_nodes: Mapping[str, Any]) -> None:
    before = machine()
    spec = lab.load({"name": MINE + "half", "nodes": two_nodes})
    crash = (
        "import os, sys, json; from penstock import lab; from penstock.lab import build\n"
        "build._node = lambda *_: os._exit(9)\n"
        "lab.up(lab.load(json.loads(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", crash, json.dumps(spec.source)], check=False)
    assert done.returncode == 9
    assert spec.name in lab.names()
    assert lab.find(spec.name) is None
    lab.up(spec)
    try:
        assert reaches(spec.nodes[0].netns, spec.nodes[1].addresses[0])
        with pytest.raises(LabError, match="is up already"):
            lab.up(spec)
    finally:
        assert lab.down(spec.name)
    assert machine() == before


def test_the_namespace_of_somebody_else_is_left_alone(two_nodes: Mapping[str, Any]) -> None:
    spec = lab.load({"name": MINE + "taken", "nodes": two_nodes})
    foreign = spec.nodes[0].netns.name
    netns.create([foreign])
    try:
        with pytest.raises(LabError, match="is not of this lab"):
            lab.up(spec)
        assert run(netns.path_of(foreign), "true").returncode == 0
    finally:
        netns.remove(foreign)
    assert not lab.down(spec.name)


async def test_a_lab_comes_up_inside_a_running_event_loop(
    make_lab: LabFactory, two_nodes: Mapping[str, Any]
) -> None:
    spec = make_lab({"nodes": two_nodes})
    assert reaches(spec.nodes[0].netns, spec.nodes[1].addresses[0])


@pytest.mark.alone
def test_fifty_workloads_are_up_in_five_seconds(
    make_lab: LabFactory, two_nodes: Mapping[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    spec = make_lab(
        {
            "nodes": two_nodes,
            "workloads": [{"name": f"w{i}", "node": f"node-{'ab'[i % 2]}"} for i in range(50)],
        }
    )
    made = time.monotonic()
    lab.down(spec.name)
    gone = time.monotonic()
    with capsys.disabled():
        print(f"\n50 workloads: up in {made - started:.2f} s, down in {gone - made:.2f} s")
    assert made - started < 5


def test_the_command_line_from_file_to_answer(tmp_path: Path) -> None:
    name = MINE + "cli"
    file = tmp_path / "lab.yaml"
    echo = " ".join(PENSTOCK) + " lab echo --name api-1 --service api --http 8080 --tcp 9000 --udp 9001"
    file.write_text(
        f"name: {name}\n"
        "nodes: {node-a: {podCIDRs: [10.244.1.0/24, 'fd00:10:244:1::/64']}}\n"
        "workloads:\n"
        "- {name: client, node: node-a}\n"
        "- name: api\n"
        "  node: node-a\n"
        "  ports: [{containerPort: 8080}, {containerPort: 9000}]\n"
        f"  run: ['{echo}']\n"
    )
    try:
        penstock("lab", "up", str(file), "--manifests", str(tmp_path / "manifests"))
        assert "kind: Workload" in (tmp_path / "manifests" / f"lab-{name}.yaml").read_text()
        listed = json.loads(penstock("lab", "list", "-o", "json"))
        assert name in [entry["name"] for entry in listed]

        def client(*argv: str) -> str:
            return penstock("lab", "exec", f"{name}:client", "--", *argv)

        answer = json.loads(client("curl", "-sH", "x-team: blue", "http://10.244.1.11:8080/orders?id=1"))
        assert (answer["pod"], answer["service"], answer["method"]) == ("api-1", "api", "GET")
        assert (answer["path"], answer["host"]) == ("/orders?id=1", "10.244.1.11:8080")
        assert answer["headers"]["X-Team"] == ["blue"]
        assert (answer["namespace"], answer["proto"], answer["tls"]) == ("default", "HTTP/1.1", None)
        shown = "%{http_code} %{time_total}"
        url = "http://[fd00:10:244:1::b]:8080/?status=503&delay=200"
        status, seconds = client("curl", "-gso", "/dev/null", "-w", shown, url).split()
        assert status == "503"
        assert float(seconds) >= 0.2
        for kind, port in (("STREAM", 9000), ("DGRAM", 9001)):
            code = (
                f"import socket; s = socket.socket(socket.AF_INET, socket.SOCK_{kind}); s.settimeout(5);"
                f"s.connect(('10.244.1.11', {port})); s.send(b'back please'); print(s.recv(99).decode())"
            )
            assert client(sys.executable, "-c", code).strip() == "back please"
        exec_false = ("lab", "exec", f"{name}:default/client", "--", "false")
        penstock(*exec_false, code=1)
        assert f"no workload or node {name}:nobody" in penstock(
            "lab", "exec", f"{name}:nobody", "true", code=2
        )
    finally:
        penstock("lab", "down", str(file))
    assert name not in lab.names()
