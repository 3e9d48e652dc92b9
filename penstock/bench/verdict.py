"""What one verdict costs: from_workload by itself, on a connection's first packet and a daemon's maps."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from penstock.bench.serving import HTTP_PORT
from penstock.bench.site import NODE, Site
from penstock.lab import entered
from penstock.redirect import libbpf
from penstock.redirect.datapath import OBJECTS
from penstock.redirect.libbpf import BpfObject

TRIES, REPEAT = 20, 5_000
_SK_BUFF, _IFINDEX = 192, 40
"""sizeof(struct __sk_buff), and where it has the device (include/uapi/linux/bpf.h)."""


def verdict_ns(place: Site, pins: Path, client: str, server: str) -> float:
    """Nanoseconds for a SYN from `client` to `server`, by the maps at `pins`: the mean of REPEAT runs.

    Of TRIES such means the least: what it is where nobody interrupts. Raises BpfError.
    """
    source, target = place.spec.workload(client), place.spec.workload(server)
    syn = struct.pack("!HHIIBBHHH", 40000, HTTP_PORT, 1, 0, 5 << 4, 2, 65535, 0, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0)
    ends = source.address(4).packed + target.address(4).packed
    packet = bytes(12) + b"\x08\x00" + head + ends + syn
    with entered(place.spec.node(NODE).netns):
        context = bytearray(_SK_BUFF)
        struct.pack_into("=I", context, _IFINDEX, socket.if_nametoindex(source.device))
        loaded = BpfObject(OBJECTS / "from_workload.o", pins)
        try:
            took: list[int] = []
            program = loaded.programs()["from_workload"]
            for _ in range(TRIES):
                libbpf.test_run(program, packet, bytes(context), repeat=REPEAT, duration=took)
        finally:
            loaded.close()
    return float(min(took))
