"""The blocklist: what XDP drops, and what the file and the map keep."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import pytest
from bpf_kernel import Kernel
from packets import UDP, frame, ip, tcp_frame, udp

from penstock.errors import HostError
from penstock.observe.reasons import Reason
from penstock.redirect import libbpf
from penstock.redirect.blocklist import FILE, Blocklist

DROP, PASS = 1, 2


class Clock:
    """Seconds since 1970 that a test may move on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def blocklist(kernel: Kernel, tmp_path: Path, clock: Clock) -> Iterator[Blocklist]:
    found = Blocklist(tmp_path, kernel.pins, clock=clock)
    yield found
    for entry in found.entries():
        found.delete(entry.network)
    found.close()


def xdp(kernel: Kernel, packet: bytes) -> int:
    return libbpf.test_run(kernel.datapath._programs["block_xdp"], packet)[0]


def from_(source: str) -> bytes:
    return tcp_frame(source, "10.1.0.1" if ":" not in source else "fd01::1", 40000, 80)


@pytest.mark.parametrize(
    ("network", "inside", "beside"),
    [
        ("203.0.113.0/24", "203.0.113.9", "203.0.114.9"),
        ("203.0.113.9/32", "203.0.113.9", "203.0.113.8"),
        ("0.0.0.0/0", "203.0.113.9", "2001:db8::9"),
        ("2001:db8::/32", "2001:db8::9", "2001:db9::9"),
        ("::/0", "2001:db8::9", "203.0.113.9"),
    ],
)
def test_just_the_network(
    kernel: Kernel, blocklist: Blocklist, network: str, inside: str, beside: str
) -> None:
    assert xdp(kernel, from_(inside)) == PASS
    before = kernel.counted().get(Reason.BLOCKLISTED, 0)
    blocklist.add(ip_network(network), None)
    assert [xdp(kernel, from_(a)) for a in (inside, beside, inside)] == [DROP, PASS, DROP]
    (entry,) = blocklist.entries()
    assert (entry.packets, entry.bytes) == (2, 2 * len(from_(inside)))
    assert kernel.counted()[Reason.BLOCKLISTED] == before + 2
    assert blocklist.delete(ip_network(network))
    assert not blocklist.delete(ip_network(network))
    assert xdp(kernel, from_(inside)) == PASS


def test_through_vlan_tags_and_past_what_is_no_ip(kernel: Kernel, blocklist: Blocklist) -> None:
    blocklist.add(ip_network("203.0.113.0/24"), None)
    plain = from_("203.0.113.9")
    tagged = plain[:12] + b"\x81\x00\x00\x05" + plain[12:]
    twice = plain[:12] + b"\x88\xa8\x00\x06" + tagged[12:]
    assert [xdp(kernel, p) for p in (tagged, twice)] == [DROP, DROP]
    assert xdp(kernel, plain[:12] + b"\x08\x06" + plain[14:]) == PASS
    fragment = frame(ip("203.0.113.9", "10.1.0.1", UDP, udp(1, 2)[4:], ident=3, offset=9))
    assert xdp(kernel, fragment) == DROP


def test_what_is_over_blocks_nothing_by_itself(kernel: Kernel, blocklist: Blocklist) -> None:
    """Nobody removes it here: the program looks at the time. And it hides nothing that is not over."""
    blocklist.add(ip_network("203.0.113.9/32"), 0.2)
    assert xdp(kernel, from_("203.0.113.9")) == DROP
    deadline = time.monotonic() + 5
    while xdp(kernel, from_("203.0.113.9")) == DROP:
        assert time.monotonic() < deadline
    blocklist.add(ip_network("203.0.113.0/24"), None)
    assert xdp(kernel, from_("203.0.113.9")) == DROP
    assert [b.packets for b in blocklist.entries() if b.network.prefixlen == 24] == [1]


def test_what_is_over_is_removed(kernel: Kernel, blocklist: Blocklist, clock: Clock) -> None:
    blocklist.add(ip_network("203.0.113.9/32"), 60)
    blocklist.add(ip_network("203.0.113.0/24"), None)
    assert 59 < (blocklist.next_end() or 0) <= 60
    clock.ahead = 61
    assert blocklist.expire() == 1
    assert [str(b.network) for b in blocklist.entries()] == ["203.0.113.0/24"]
    assert blocklist.next_end() is None


def test_another_daemon_finds_it_with_its_counters(
    kernel: Kernel, blocklist: Blocklist, tmp_path: Path, clock: Clock
) -> None:
    blocklist.add(ip_network("203.0.113.0/24"), 3600)
    blocklist.add(ip_network("2001:db8::/32"), None)
    xdp(kernel, from_("203.0.113.9"))
    following = Blocklist(tmp_path, kernel.pins, clock=clock)
    assert [(str(b.network), b.packets) for b in following.entries()] == [
        ("203.0.113.0/24", 1),
        ("2001:db8::/32", 0),
    ]
    assert (following.entries()[0].until or 0) > clock() + 3500
    following.close()
    # After the machine was off, the map is a new one.
    for network in ("203.0.113.0/24", "2001:db8::/32"):
        blocklist.delete(ip_network(network))
    (tmp_path / FILE).write_text(
        '{"format": 1, "blocked": [{"cidr": "203.0.113.0/24", "since": 1.0, "until": null}]}'
    )
    again = Blocklist(tmp_path, kernel.pins, clock=clock)
    assert xdp(kernel, from_("203.0.113.9")) == DROP
    again.delete(ip_network("203.0.113.0/24"))
    again.close()


def test_a_damaged_file_is_put_aside(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    found = Blocklist(tmp_path, kernel.pins)
    assert not found
    assert (tmp_path / f"{FILE}.corrupt").read_text() == "{"
    found.close()


def test_what_cannot_be_kept_is_not_blocked(kernel: Kernel, tmp_path: Path) -> None:
    """Else it would be gone with the next daemon, and nobody would know."""
    found = Blocklist(tmp_path / "file" / "below", kernel.pins)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HostError):
        found.add(ip_network("203.0.113.0/24"), None)
    assert xdp(kernel, from_("203.0.113.9")) == PASS
    found.close()
