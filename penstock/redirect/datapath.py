"""Programs, links and pins: how the datapath is put up, adopted, and taken down.

Everything is pinned in a bpffs of our own under the run directory, so the datapath stands while no
daemon runs. A new daemon loads the objects anew on the maps that stand and swaps the program behind
each link at once: no packet passes without one.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from penstock.plan import PortEntry
from penstock.redirect import libbpf
from penstock.redirect.expedite import expedited
from penstock.redirect.libbpf import AttachType, BpfError, BpfObject

OBJECTS = Path(__file__).parent / "objects"
NAMES = (
    "from_workload",
    "to_workload",
    "from_netdev",
    "to_netdev",
    "from_port",
    "from_bridge",
    "connect",
    "sockets",
    "getsockopt",
    "block_xdp",
)
# A workload whose one link is routed; a link that is a bridge's port or one of several; a port of nobody we
# know.
WORKLOAD_PROGRAMS = {"from_workload": AttachType.TCX_INGRESS, "to_workload": AttachType.TCX_EGRESS}
PORT_PROGRAMS = {"from_port": AttachType.TCX_INGRESS, "to_port": AttachType.TCX_EGRESS}
OTHER_PORT_PROGRAMS = {"from_port": AttachType.TCX_INGRESS}
BRIDGE_PROGRAMS = {"from_bridge": AttachType.TCX_INGRESS, "to_netdev": AttachType.TCX_EGRESS}
NETDEV_PROGRAMS = {"from_netdev": AttachType.TCX_INGRESS, "to_netdev": AttachType.TCX_EGRESS}
XDP_PROGRAM = "block_xdp"
CGROUP_PROGRAMS = {
    "connect4": AttachType.CGROUP_INET4_CONNECT,
    "connect6": AttachType.CGROUP_INET6_CONNECT,
    "sendmsg4": AttachType.CGROUP_UDP4_SENDMSG,
    "sendmsg6": AttachType.CGROUP_UDP6_SENDMSG,
    "recvmsg4": AttachType.CGROUP_UDP4_RECVMSG,
    "recvmsg6": AttachType.CGROUP_UDP6_RECVMSG,
    "getpeername4": AttachType.CGROUP_INET4_GETPEERNAME,
    "getpeername6": AttachType.CGROUP_INET6_GETPEERNAME,
    "remember_listener": AttachType.CGROUP_SOCK_OPS,
    "own_destination": AttachType.CGROUP_GETSOCKOPT,
}
NAMESPACE_PROGRAMS = {"find_listener": AttachType.SK_LOOKUP}
_MNT_DETACH = 2


def cgroup2_mount() -> Path:
    """Where the root of cgroup v2 is mounted; on hybrid systems not at /sys/fs/cgroup itself.

    In a container, whose own mount holds only its own group, the root is told by its way up: ``/../..``.
    Raises BpfError.
    """
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.startswith("cgroup2 "):
            root, mount = fields.split()[3:5]
            found.append((-root.count(".."), root.strip("/.").count("/") + bool(root.strip("/.")), mount))
    if found:
        return Path(min(found, key=lambda each: each[:2])[2])
    raise BpfError("no cgroup v2 is mounted", hint="mount -t cgroup2 none /sys/fs/cgroup/unified")


def _mounted(path: Path) -> bool:
    real = str(path.resolve())
    return any(
        line.split()[4] == real and " - bpf " in line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    )


def _mount(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    if _mounted(path):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(path)
    if libc.mount(b"penstock", target, b"bpf", ctypes.c_ulong(0), b"mode=0700") != 0:
        raise BpfError(f"mount bpffs at {path}: {os.strerror(ctypes.get_errno())}", hint="run it as root")


def take_down(pins: Path) -> None:
    """Remove every link, program and map; twice is fine. Programs go with their links."""
    if _mounted(pins):
        for pin in [*pins.glob("links/*"), *(p for p in pins.iterdir() if p.is_file())]:
            with suppress(OSError):
                pin.unlink()
        ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(pins), _MNT_DETACH)
    with suppress(OSError):
        pins.rmdir()


class Datapath:
    """The loaded programs of one node, and their links. `pins` is the bpffs."""

    def __init__(self, pins: Path) -> None:
        _mount(pins)
        self.pins = pins
        self._links = pins / "links"
        self._links.mkdir(exist_ok=True)
        self._objects = [BpfObject(OBJECTS / f"{name}.o", pins) for name in NAMES]
        self._programs = {name: fd for o in self._objects for name, fd in o.programs().items()}
        self._held: dict[str, int] = {}
        self._netdevs: tuple[int, ...] | None = None
        self._guarded = False
        self.adopted = any(self._links.iterdir())
        """Whether an earlier daemon left programs in force."""
        for pin in sorted(self._links.iterdir()):
            self._adopt(pin)

    def _adopt(self, pin: Path) -> None:
        """Swap the new program in; a link whose interface is gone is forgotten."""
        program = pin.name.partition("-")[0]
        link = libbpf.open_pin(pin)
        try:
            libbpf.update_link(link, self._programs[program])
        except (BpfError, KeyError):
            os.close(link)
            pin.unlink()
            return
        self._held[pin.name] = link

    def _attach(self, program: str, target: int, attach: AttachType, name: str) -> None:
        if name in self._held:
            return
        try:
            if attach is AttachType.XDP:
                link = libbpf.create_xdp_link(self._programs[program], target)
            else:
                link = libbpf.create_link(self._programs[program], target, attach)
        except BpfError as e:
            # The interface went between being seen and now; its going is an event of its own.
            if isinstance(e.__cause__, OSError) and e.__cause__.errno == errno.ENODEV:
                return
            raise
        libbpf.pin(link, self._links / name)
        self._held[name] = link

    def _detach(self, name: str) -> None:
        with suppress(FileNotFoundError):
            (self._links / name).unlink()
        os.close(self._held.pop(name))

    def attach_cgroup(self) -> None:
        """The connect hooks, at the root of cgroup v2: they only touch namespaces in the map `netns`."""
        root = os.open(cgroup2_mount(), os.O_RDONLY)
        try:
            for program, attach in CGROUP_PROGRAMS.items():
                self._attach(program, root, attach, program)
        finally:
            os.close(root)

    def attach_namespace(self) -> None:
        """What sees all connections of the network namespace that the calling thread is in."""
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            for program, attach in NAMESPACE_PROGRAMS.items():
                self._attach(program, here, attach, program)
        finally:
            os.close(here)

    def attach(
        self, workloads: Iterable[int], netdevs: Iterable[int], ports: Mapping[int, PortEntry] | None = None
    ) -> None:
        """Programs on exactly these interfaces (by index), and no others.

        `workloads` are their host sides, `netdevs` the node's devices; `ports` says which of either are
        more than that: ports of a bridge, or links of a workload with several.
        """
        ports = ports or {}
        devices = tuple(netdevs)
        bridges = {port.bridge for port in ports.values() if port.bridge}
        # Other ports of a bridge are how the world comes to it.
        self._netdevs = tuple(i for i in devices if i not in bridges)
        wanted: dict[str, tuple[str, int, AttachType]] = {}
        for programs, interfaces in (
            (BRIDGE_PROGRAMS, bridges),
            (OTHER_PORT_PROGRAMS, [index for index, port in ports.items() if not port.home]),
            (PORT_PROGRAMS, [index for index, port in ports.items() if port.home]),
            (WORKLOAD_PROGRAMS, [index for index in workloads if index not in ports]),
            (NETDEV_PROGRAMS, [i for i in devices if i not in ports and i not in bridges]),
        ):
            for index in interfaces:
                for program, attach in programs.items():
                    wanted[f"{program}-{index}"] = (program, index, attach)
        self._settle_guard()
        gone = [n for n in self._held if "-" in n and n not in wanted and not n.startswith(XDP_PROGRAM)]
        if not gone and wanted.keys() <= self._held.keys():
            return
        with expedited():
            # The new ones first: an interface that changes its kind is never without a program.
            for name, (program, index, attach) in wanted.items():
                self._attach(program, index, attach, name)
            for name in gone:
                self._detach(name)

    def guard(self, wanted: bool) -> None:
        """Whether the node's devices carry the blocklist's program. Raises BpfError."""
        self._guarded = wanted
        self._settle_guard()

    def _settle_guard(self) -> None:
        # Before the devices are known, what a daemon before has attached stays.
        if self._netdevs is None:
            return
        wanted = {f"{XDP_PROGRAM}-{i}": i for i in self._netdevs if self._guarded}
        for name in [n for n in self._held if n.startswith(XDP_PROGRAM) and n not in wanted]:
            self._detach(name)
        for name, index in wanted.items():
            self._attach(XDP_PROGRAM, index, AttachType.XDP, name)

    def close(self) -> None:
        """Let go of the descriptors; what is pinned stays in force."""
        for link in self._held.values():
            os.close(link)
        self._held.clear()
        for loaded in self._objects:
            loaded.close()
