"""What may be written before the proxy is ready: nothing opens, what was open stays, denials at once."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from penstock.plan import (
    Direction,
    KernelTables,
    ListenerKey,
    PolicyEntry,
    PolicyKey,
    ServiceEntry,
    ServiceKey,
    Verdict,
)
from penstock.policy.lookup import look_up
from penstock.redirect.stage import InKernel, after_proxy, before_proxy
from penstock.routing.model import ListenerKind

IN = Direction.INGRESS
ALLOW, STEER, DENY = Verdict.ALLOW, Verdict.REDIRECT, Verdict.DENY
TCP = 6
Table = dict[PolicyKey, PolicyEntry]


def table(*entries: tuple[int, int, int, Verdict]) -> Table:
    """(peer, port, bits, verdict) of one subject's TCP ingress; port 0 with 0 bits and peer 0 is the rest."""
    return {PolicyKey(1, IN, peer, TCP, port, bits): PolicyEntry(v) for peer, port, bits, v in entries}


def verdict(of: Table, peer: int, port: int) -> Verdict:
    return look_up(of, 1, IN, peer, TCP, port)


def held(wanted: Table, now: Table) -> Table:
    return dict(before_proxy(KernelTables(policy=wanted), InKernel(now, {}, (), {})).policy)


def test_what_was_allowed_stays_allowed_until_the_listener_is_there() -> None:
    assert verdict(held(table((300, 80, 16, STEER)), table((300, 80, 16, ALLOW))), 300, 80) is ALLOW
    everything = {PolicyKey(1, IN, 0): PolicyEntry(ALLOW)}
    assert verdict(held(table((300, 80, 16, STEER)), everything), 300, 80) is ALLOW


def test_what_was_not_allowed_is_closed() -> None:
    wanted = table((300, 80, 16, STEER))
    assert held(wanted, {}) == wanted
    assert held(wanted, table((300, 80, 16, DENY))) == wanted
    assert held(wanted, table((301, 80, 16, ALLOW))) == wanted


def test_what_is_steered_already_stays_steered() -> None:
    wanted = table((300, 80, 16, STEER))
    assert held(wanted, wanted) == wanted


def test_denials_are_written_at_once() -> None:
    wanted = table((300, 80, 16, DENY), (301, 80, 16, STEER))
    found = held(wanted, table((300, 80, 16, ALLOW), (301, 80, 16, ALLOW)))
    assert verdict(found, 300, 80) is DENY
    assert verdict(found, 301, 80) is ALLOW
    assert verdict(found, 302, 80) is DENY


def test_a_range_of_which_a_part_was_allowed_does_not_open_the_rest() -> None:
    found = held(table((300, 80, 12, STEER)), table((300, 80, 16, ALLOW)))
    assert verdict(found, 300, 81) is STEER


def test_any_peer_does_not_open_for_the_one_that_was_denied() -> None:
    found = held(table((0, 80, 16, STEER)), table((0, 80, 16, ALLOW), (300, 80, 16, DENY)))
    assert verdict(found, 300, 80) is STEER


def test_two_keys_that_rely_on_each_other() -> None:
    """The narrow key and the one for any peer: were both held back, what they steer would pass."""
    wanted = table((0, 80, 16, STEER), (300, 80, 16, STEER))
    now = table((0, 80, 16, ALLOW), (300, 80, 16, STEER))
    found = held(wanted, now)
    assert verdict(found, 300, 80) is STEER
    assert verdict(found, 301, 80) is ALLOW


TABLES = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 300, 301]),
        st.sampled_from([(0, 0), (64, 10), (80, 12), (80, 16), (81, 16), (88, 13)]),
        st.sampled_from(list(Verdict)),
    ),
    max_size=6,
).map(lambda entries: table(*((peer, *port, v) for peer, port, v in entries)))


@given(TABLES, TABLES)
def test_nothing_passes_that_neither_table_lets_pass(wanted: Table, now: Table) -> None:
    found = held(wanted, now)
    assert found.keys() == wanted.keys()
    for peer in (300, 301, 302):
        for port in (1, 63, 64, 79, 80, 81, 82, 88, 95, 96, 127, 128):
            before, after = verdict(now, peer, port), verdict(wanted, peer, port)
            meanwhile = verdict(found, peer, port)
            if after in (STEER, Verdict.NAMES) and before is ALLOW:
                assert meanwhile in (ALLOW, after)
            else:
                assert meanwhile is after, (peer, port)


# --- listeners and services ---------------------------------------------------------------------------

OLD, NEW = ListenerKey(300, ListenerKind.HTTP_WORKLOAD), ListenerKey(301, ListenerKind.HTTP_WORKLOAD)


def _service(name: str, number: int) -> dict[ServiceKey, ServiceEntry]:
    key = ServiceKey(ip_address(f"10.96.0.{number}"), 80, TCP)
    return {key: ServiceEntry(number, name, ((ip_address("10.1.0.1"), 80),), http=True)}


def test_a_listener_is_pointed_at_only_where_it_stands() -> None:
    wanted = KernelTables(listeners={OLD: 15001, NEW: 15002})
    assert before_proxy(wanted, InKernel({}, {OLD: 15001}, (), {})).listeners == {OLD: 15001}
    # The same key on another port is another listener.
    assert before_proxy(wanted, InKernel({}, {OLD: 15009}, (), {})).listeners == {}
    # What is not wanted any more goes at once: the kernel first, then the proxy.
    assert before_proxy(KernelTables(), InKernel({}, {OLD: 15001}, (), {})).listeners == {}


def test_a_new_route_waits_as_the_plain_service() -> None:
    services = _service("default/a:80/4", 1) | _service("default/b:80/4", 2)
    old, new = services
    found = before_proxy(KernelTables(services=services), InKernel({}, {}, {old}, {})).services
    assert (found[old].http, found[new].http) == (True, False)
    assert found[new].backends == services[new].backends


def test_after_the_proxy() -> None:
    services = _service("default/a:80/4", 1) | _service("default/b:80/4", 2)
    steer = table((300, 80, 16, STEER))
    wanted = KernelTables(policy=steer, listeners={OLD: 15001, NEW: 15002}, services=services)
    found = after_proxy(wanted, {NEW}, {"default/a:80/4"})
    assert found.listeners == {NEW: 15002}
    assert [s.http for s in found.services.values()] == [True, False]
    # The policy is in force whatever the proxy did: without a listener it is closed.
    assert found.policy == steer
