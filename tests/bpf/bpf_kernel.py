"""The real programs on real maps, run on one packet at a time (BPF_PROG_TEST_RUN); nothing is attached."""

from __future__ import annotations

import os
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from penstock.observe.reasons import Reason
from penstock.plan import KernelTables
from penstock.redirect import libbpf
from penstock.redirect.datapath import Datapath
from penstock.redirect.layout import KernelEvent, decode_event
from penstock.redirect.libbpf import BpfMap, BpfObject, RingBuffer, open_pin
from penstock.redirect.shapes import SHAPES
from penstock.redirect.tables import Tables

ROOT = Path(__file__).resolve().parents[2]
SOURCE_PORTS = (20000, 31999)
SK_BUFF = 192
"""sizeof(struct __sk_buff), include/uapi/linux/bpf.h."""

OK, SHOT, REDIRECT = 0, 2, 7


def built_object(name: str) -> Path:
    """build/bpf/`name`.o of bpf/tests/`name`.c, compiled as the Makefile does if it is missing or old."""
    source, target = ROOT / "bpf/tests" / f"{name}.c", ROOT / "build/bpf" / f"{name}.o"
    inputs = [source, *(ROOT / "bpf").glob("*.[ch]")]
    if target.exists() and target.stat().st_mtime >= max(p.stat().st_mtime for p in inputs):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    flags = ["-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3"]
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run(["clang", *flags, include, "-c", str(source), "-o", str(target)], check=True)
    return target


@dataclass(frozen=True)
class Ran:
    """What became of a packet. `reason` is that of the one event it caused, if any."""

    action: int
    mark: int
    events: tuple[KernelEvent, ...]
    packet: bytes = b""

    @property
    def reason(self) -> Reason | None:
        return Reason(self.events[-1].reason) if self.events else None  # type: ignore[call-arg]


class Kernel:
    """The datapath, not attached. `device` gives interface indices by name."""

    def __init__(self, pins: Path, device: dict[str, int]) -> None:
        self.pins = pins
        self.device = device
        self.datapath = Datapath(pins)
        self._objects = [BpfObject(built_object("translate"), pins)]
        self._programs = dict(self.datapath._programs)
        for loaded in self._objects:
            self._programs.update(loaded.programs())
        self.tables = Tables(pins, SOURCE_PORTS, host_access=True)
        self._samples: list[bytes] = []
        self._ring_fd = open_pin(pins / "events")
        self._ring = RingBuffer(self._ring_fd, self._samples.append)
        self.conntrack = self.map("conntrack")
        self.fragments = BpfMap(pins / "fragments", 40, 4)
        self.nat = (
            BpfMap(pins / "nat", 40, 28),
            BpfMap(pins / "nat_back", 40, 36),
            BpfMap(pins / "affinity", 20, 32),
            BpfMap(pins / "translated", 32, 20),
        )
        self.event_budgets = BpfMap(pins / "event_budgets", 4, 16 * libbpf.possible_cpus())

    def map(self, name: str) -> BpfMap:
        return BpfMap(self.pins / name, SHAPES[name].key, SHAPES[name].value)

    def call(
        self, program: str, packet: bytes, *, device: str = "", mark: int = 0, came_in: str = ""
    ) -> tuple[int, bytes, int]:
        context = bytearray(SK_BUFF)
        struct.pack_into("=I", context, 8, mark)
        struct.pack_into("=I", context, 36, self.device[came_in] if came_in else 0)
        struct.pack_into("=I", context, 40, self.device[device] if device else 1)
        action, after, out = libbpf.test_run(self._programs[program], packet, bytes(context))
        return action, after, int(struct.unpack_from("=I", out, 8)[0])

    def run(
        self,
        program: str,
        packet: bytes,
        device: str,
        *,
        mark: int = 0,
        came_in: str = "",
        to: bytes = b"",
        rewritten: bool = False,
    ) -> Ran:
        """Run `program` once on a frame that comes in (or goes out) at `device`, and `came_in` at another.

        AssertionError if it is not the same frame afterwards, or bears another destination than `to`; or if
        it is the same, where it should be `rewritten`.
        """
        self._samples.clear()
        # A test sends packets faster than people read: each run has a budget of its own.
        self.event_budgets.put(bytes(4), bytes(self.event_budgets.value_size))
        action, after, mark = self.call(program, packet, device=device, mark=mark, came_in=came_in)
        same = after == (to or packet[:6]) + packet[6:]
        assert same != rewritten, "what is for no Service is not rewritten"
        self._ring.consume()
        return Ran(action, mark, tuple(decode_event(s) for s in self._samples), after)

    def counted(self) -> dict[Reason, int]:
        """Packets by reason, since the maps were made."""
        return {Reason(n): packets for n, (packets, _) in self.tables.counters().items()}  # type: ignore[call-arg]

    def forget(self) -> None:
        """No flow, no fragment and no table entry is left."""
        self.tables.apply(KernelTables())
        for each in (self.conntrack, self.fragments, *self.nat):
            for key in list(each.keys()):
                each.delete(key)
        self._ring.consume()
        self._samples.clear()

    def close(self) -> None:
        self._ring.close()
        os.close(self._ring_fd)
        self.conntrack.close()
        self.fragments.close()
        for each in self.nat:
            each.close()
        self.event_budgets.close()
        self.tables.close()
        for loaded in self._objects:
            loaded.close()
        self.datapath.close()
