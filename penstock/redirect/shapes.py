"""The size of each map: of its keys and values in bytes, and how many entries it holds.

bpf/maps.h says the same; tests/bpf/test_layout.py compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.redirect import maglev


@dataclass(frozen=True, slots=True)
class MapShape:
    """Sizes in bytes; `entries` is where the kernel would refuse more."""

    key: int
    value: int
    entries: int


SHAPES: Mapping[str, MapShape] = {
    "config": MapShape(4, 16, 1),
    "endpoints": MapShape(16, 20, 16384),
    "ipcache": MapShape(20, 12, 131072),
    "policy": MapShape(16, 12, 262144),
    "both_names": MapShape(8, 4, 16384),
    "listeners": MapShape(20, 4, 8192),
    "names": MapShape(20, 64, 131072),
    "port_modes": MapShape(8, 4, 16384),
    "services": MapShape(20, 36, 65536),
    "backends": MapShape(8, 20, 262144),
    "ports": MapShape(4, 28, 16384),
    "maglev": MapShape(4, 4 + 2 * maglev.SLOTS, 4096),
    "standing": MapShape(24, 4, 262144),
    "blocklist": MapShape(20, 32, 65536),
    "netns": MapShape(8, 8, 16384),
    "conntrack": MapShape(40, 32, 262144),
    "looked_at": MapShape(40, 304, 16384),
    "counters": MapShape(4, 16, 64),
}

FORGETFUL: Mapping[str, MapShape] = {
    "conntrack": SHAPES["conntrack"],
    "nat": MapShape(40, 28, 65536),
    "nat_back": MapShape(40, 36, 65536),
    "affinity": MapShape(20, 32, 65536),
    "translated": MapShape(32, 20, 65536),
    "fragments": MapShape(40, 4, 8192),
}
"""LRU: what does not fit takes the place of what was not used for longest."""
