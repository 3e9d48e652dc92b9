"""What the demo takes for proof: it must refuse what is none."""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import lab
from penstock.demo import evidence
from penstock.demo.evidence import Segment, binomial_bounds, rise, segment, streams, tls_records
from penstock.demo.report import Check, Found, Step, as_data, lines
from penstock.manifests.review import review
from penstock.manifests.store import Store

EXAMPLES = Path(__file__).parents[2] / "examples"
A, B = ("10.0.0.1", 20001), ("10.0.0.2", 8080)


def record(kind: int, length: int, version: int = 0x0303) -> bytes:
    return struct.pack("!BHH", kind, version, length) + b"x" * length


def frame(data: bytes, *, padding: bytes = b"", protocol: int = 6, ethertype: int = 0x0800) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", A[1], B[1], 7, 0, 5 << 4, 0x18, 0, 0, 0)
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 40 + len(data), 0, 0, 64, protocol, 0, b"\n\0\0\1", b"\n\0\0\2"
    )
    return b"\0" * 12 + struct.pack("!H", ethertype) + ip + tcp + data + padding


def test_bounds_are_those_of_the_binomial_distribution() -> None:
    assert binomial_bounds(1000, 0.1) == (53, 147)
    assert binomial_bounds(10, 0.5) == (0, 10)
    assert binomial_bounds(100, 0.0) == (0, 0)


def test_a_segment_is_cut_out_of_its_frame_without_padding() -> None:
    assert segment(frame(b"hello", padding=b"\0" * 10)) == Segment(A, B, 7, b"hello")


@pytest.mark.parametrize(
    "other", [b"", b"short", frame(b""), frame(b"x", protocol=17), frame(b"x", ethertype=0x86DD)]
)
def test_what_is_no_tcp_segment_with_data_is_passed_over(other: bytes) -> None:
    assert segment(other) is None


def test_tls_records_are_walked_to_the_last_byte() -> None:
    assert tls_records(record(22, 300, 0x0301) + record(20, 1) + record(23, 16000)) == [
        "handshake",
        "change cipher spec",
        "application data",
    ]
    assert tls_records(record(23, 400)[:200]) == ["application data"]


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"GET /api/ HTTP/1.1\r\n\r\n",
        record(23, 20) + b"GET /api/ HTTP/1.1\r\n\r\n",
        record(24, 20),
        record(22, 20, 0x0200),
        record(23, 0),
        struct.pack("!BHH", 23, 0x0303, 20000) + b"x" * 20000,
    ],
)
def test_anything_else_is_not_tls(stream: bytes) -> None:
    assert tls_records(stream) is None


@given(
    st.binary(min_size=1, max_size=200),
    st.lists(st.integers(0, 200), max_size=6),
    st.integers(0, (1 << 32) - 1),
    st.randoms(use_true_random=False),
)
def test_a_stream_is_put_together_whatever_the_order(
    data: bytes, cuts: list[int], start: int, random
) -> None:
    edges = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    parts = [Segment(A, B, (start + i) % evidence.WRAP, data[i:j]) for i, j in pairwise(edges)]
    parts += [random.choice(parts)]
    random.shuffle(parts)
    assert streams(parts) == {(A, B): data}


def test_nothing_is_claimed_about_what_follows_a_hole() -> None:
    assert streams([Segment(A, B, 0, b"abc"), Segment(A, B, 9, b"xyz")]) == {(A, B): b"abc"}


def test_only_counters_that_moved_are_told() -> None:
    assert rise({"A": 1, "B": 2}, {"A": 1, "B": 5, "C": 1}) == {"B": 3, "C": 1}


def test_a_step_that_claims_nothing_did_not_hold() -> None:
    empty = Step("a", "A", Found())
    good = Step("b", "B", Found(sent=("x",), got=("y",), checks=(Check("c", True),)))
    bad = Step("c", "C", Found(checks=(Check("d", True), Check("e", False))))
    assert (empty.ok, good.ok, bad.ok) == (False, True, False)
    assert not as_data([])["ok"]
    assert not as_data([good, bad])["ok"]
    assert as_data([good]) == {
        "ok": True,
        "steps": [
            {
                "name": "b",
                "ok": True,
                "title": "B",
                "sent": ["x"],
                "got": ["y"],
                "went": [],
                "checks": [{"claim": "c", "ok": True}],
            }
        ],
    }
    assert [style for style, text in lines(1, bad) if "✗" in text] == ["fail", "fail"]


def test_the_examples_are_without_fault(tmp_path: Path) -> None:
    spec = lab.load(EXAMPLES / "lab.yaml")
    files = [*(EXAMPLES / "manifests").iterdir(), lab.write_manifests(spec, tmp_path)]
    result = Store().apply({str(file): file.read_text() for file in files})
    assert [*result.problems, *review(result.documents.values())] == []
    assert {key.kind for key in result.documents} == {
        "CiliumNetworkPolicy",
        "HTTPRoute",
        "Node",
        "PeerAuthentication",
        "Service",
        "Workload",
    }
