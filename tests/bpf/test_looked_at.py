"""Connections of which the server name is known: for which one a record counts, and what it opens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address

import pytest
from bpf_kernel import Kernel
from packets import tcp_frame
from small_node import FAMILIES, OUT, A, R, closed, rule, up

from penstock.plan import ListenerKey, PolicyEntry, Verdict
from penstock.policy.server_names import number
from penstock.redirect.by_names import Way
from penstock.redirect.looked_at import LookedAtTable
from penstock.routing.model import ListenerKind
from penstock.world import Proxied

NAMES = ("one.example.com",)
MORE = ("one.example.com", "two.example.com")
PORT = 443


@dataclass(frozen=True)
class Entry:
    """Of an access log."""

    time: float
    source: tuple[str, int]
    destination: tuple[str, int]
    server_name: str = "one.example.com"
    begun: bool = True


@pytest.fixture
def table(kernel: Kernel) -> Iterator[LookedAtTable]:
    made = LookedAtTable(kernel.pins)
    yield made
    made.keep((), made.records())
    made.close()


def key(names: tuple[str, ...]) -> ListenerKey:
    return ListenerKey(A, ListenerKind.NAMES, R, number(names))


def listener(names: tuple[str, ...]) -> str:
    return f"class-{A}/names/{R}/{','.join(names)}/"


def begin(kernel: Kernel, family: dict[int, str], names: tuple[str, ...] = NAMES) -> Proxied:
    """A connection that is steered by its server name, to a listener that is not there: no socket is."""
    (where,) = rule(A, OUT, Verdict.NAMES, peer=R, protocol=6, port=PORT)
    policy = closed(A, OUT) | {where: PolicyEntry(Verdict.NAMES, names=names)}
    up(kernel, policy, listeners={key(names): 15001})
    kernel.run("from_workload", tcp_frame(family[A], family[R], 40000, PORT), "wa")
    return Proxied(ip_address(family[A]), 40000, ip_address(family[R]), PORT)


def told(table: LookedAtTable, c: Proxied, since: float, name: str = NAMES[0], *, begun: bool = True) -> None:
    ends = (str(c.client), c.client_port), (str(c.address), c.port)
    table.told(Entry(since, *ends, name, begun), listener(NAMES))


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
def test_a_record_is_of_the_connection_that_the_kernel_saw_begin(
    kernel: Kernel, table: LookedAtTable, family: dict[int, str]
) -> None:
    before = time.time()
    connection = begin(kernel, family)
    told(table, connection, before)
    assert table.of(connection) is None
    told(table, connection, time.time())
    known = table.of(connection)
    assert known is not None and (known.server_name, known.came_by) == (NAMES[0], key(NAMES))
    # Another daemon reads the same.
    again = LookedAtTable(kernel.pins)
    assert again.of(connection) == known
    again.close()
    # What is told late of an earlier one changes nothing; a new one with the same ports is another.
    told(table, connection, before, "late.example.com")
    assert table.of(connection) == known
    begin(kernel, family)
    assert table.of(connection) is None


@pytest.mark.parametrize("family", FAMILIES, ids=["v4", "v6"])
def test_who_may_go_on_and_who_not(kernel: Kernel, table: LookedAtTable, family: dict[int, str]) -> None:
    connection = begin(kernel, family)
    way = Way(key(MORE), (MORE,))
    assert table.sort([(connection, way)]).unknown == (connection,)
    told(table, connection, time.time())
    assert table.sort([(connection, way)]).kept == (connection,)
    known = table.of(connection)
    assert known is not None and known.goes_on == key(MORE)
    forbidden = table.sort([(connection, Way(key(("two.example.com",)), (("two.example.com",),)))])
    assert forbidden.gone == (connection,)
    # Mesh TLS cannot be put around what is open.
    meshed = table.sort([(connection, Way(key(MORE)._replace(destination=0), (MORE,)))])
    assert meshed.kept == meshed.gone == ()
    since = known.since / 1e9
    told(table, connection, since, begun=False)
    assert table.of(connection) is None and not table.records()
