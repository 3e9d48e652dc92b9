"""What `penstock check` sees in a real namespace with real conflicts in it."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from penstock import lab
from penstock.lab import LabSpec
from penstock.redirect import hostprobe
from penstock.redirect.hostcheck import Program, Rule

BPF_PROG_LOAD, BPF_LINK_CREATE = 5, 28
SCHED_CLS = 3


def attach_foreign_program(ifindex: int, name: str) -> int:
    """A program that lets all packets pass (r0 = TCX_NEXT) at tcx ingress; gone with the returned fd."""
    code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, -1, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    program, _ = hostprobe._bpf_call(
        BPF_PROG_LOAD,
        struct.pack(
            "=IIQQIIQII16s",
            SCHED_CLS,
            2,
            ctypes.addressof(code),
            ctypes.addressof(licence),
            *(0, 0, 0, 0, 0),
            name.encode(),
        ),
    )
    try:
        ingress = hostprobe.TCX_HOOKS["ingress"]
        link, _ = hostprobe._bpf_call(
            BPF_LINK_CREATE, struct.pack("=IIII", program, ifindex, ingress, 0) + b"\0" * 16
        )
    finally:
        os.close(program)
    return link


def test_conflicts_of_a_node_are_seen_and_a_clean_node_has_none(
    make_lab: Callable[[Mapping[str, Any]], LabSpec], two_nodes: Mapping[str, Any]
) -> None:
    spec = make_lab({"nodes": two_nodes, "workloads": [{"name": "w", "node": "node-a"}]})
    node, device = spec.nodes[0].netns, spec.workloads[0].device
    with lab.entered(node):
        clean = hostprobe.probe()
    assert (clean.rules, clean.programs, clean.strict_interfaces, clean.bridges) == ((), (), (), ())
    assert clean.sysctls["net.ipv4.ip_forward"] == "1"
    assert clean.libbpf
    assert clean.envoy
    assert clean.envoy[1].startswith("1.40.")

    mess = f"""
        ip rule add fwmark 0x200 lookup 100
        ip -6 rule add from all lookup 2004
        sysctl -qw net.ipv4.conf.{device}.rp_filter=1
        ip link add br7 type bridge
    """
    assert lab.run_in(node, ["sh", "-ec", mess]).wait() == 0
    with lab.entered(node):
        link = attach_foreign_program(socket.if_nametoindex(device), "stranger")
        try:
            messy = hostprobe.probe()
        finally:
            os.close(link)
    assert messy.rules == (Rule(4, 0x200, 0xFFFFFFFF, 100), Rule(6, 0, 0, 2004))
    assert messy.programs == (Program(device, "ingress", "stranger"),)
    assert messy.strict_interfaces == (device,)
    assert messy.bridges == ("br7",)


def test_the_exit_code_tells_whether_the_machine_is_fit(
    make_lab: Callable[[Mapping[str, Any]], LabSpec], two_nodes: Mapping[str, Any]
) -> None:
    node = make_lab({"nodes": two_nodes}).nodes[0].netns

    def check() -> tuple[int, dict[str, Any]]:
        argv = [sys.executable, "-m", "penstock.cli", "check", "-o", "json"]
        process = lab.run_in(node, argv, stdout=subprocess.PIPE, text=True)
        output, _ = process.communicate(timeout=30)
        return process.returncode, json.loads(output)

    _, before = check()
    states = {finding["name"]: finding["state"] for finding in before["findings"]}
    assert states["ip_forward"] == states["kernel"] == states["rp_filter"] == "ok"
    assert lab.run_in(node, ["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1"]).wait() == 0
    code, after = check()
    assert (code, after["ok"]) == (0, True)
    (found,) = [finding for finding in after["findings"] if finding["name"] == "rp_filter"]
    assert found["state"] == "warn"
    assert lab.run_in(node, ["sh", "-c", found["mend"]], stdout=subprocess.DEVNULL).wait() == 0
    _, mended = check()
    assert {f["name"]: f["state"] for f in mended["findings"]} == states
