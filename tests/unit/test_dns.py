"""Names: what patterns mean, who may ask what, what the mesh answers, and how long an address counts."""

from __future__ import annotations

import dns.message
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dns import messages
from penstock.dns.model import Client, DnsPlan, Grant, ServiceName, ServicePort
from penstock.dns.patterns import canonical, matches, name_list
from penstock.dns.question import Answered, Resolver
from penstock.dns.recorded import MOST_ADDRESSES, FullError, Recorded

# --- patterns -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "name", "meant"),
    [
        ("example.com", "example.com", True),
        ("example.com", "www.example.com", False),
        ("*.example.com", "www.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", "a.b.example.com", False),
        ("*example.com", "example.com", True),
        ("*example.com", "my-example.com", True),
        ("www.*.com", "www.example.com", True),
        ("www.*.com", "www.a.b.com", False),
        ("**.example.com", "a.b.example.com", True),
        ("**.example.com", "a.example.com", True),
        ("**.example.com", "example.com", False),
        ("**.example.com", "aexample.com", False),
        ("*", "anything.at.all", True),
        ("*", "", True),
        ("example.com", "exampleXcom", False),
    ],
)
def test_what_a_pattern_means(pattern: str, name: str, meant: bool) -> None:
    assert matches(canonical(pattern), canonical(name)) is meant


def test_neither_case_nor_the_last_dot_counts() -> None:
    assert name_list(["WWW.Example.COM.", "www.example.com"]) == ("www.example.com",)


def _naive(pattern: str, name: str) -> bool:
    """The words of the documentation, a character at a time."""
    if pattern == "*":
        return True
    if pattern.startswith("**."):
        labels = name.split(".")
        return any(
            all(labels[:cut]) and _stars(pattern[3:], ".".join(labels[cut:])) for cut in range(1, len(labels))
        )
    return _stars(pattern, name)


def _stars(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return _stars(pattern[1:], name) or (bool(name) and name[0] != "." and _stars(pattern, name[1:]))
    return bool(name) and name[0] == pattern[0] and _stars(pattern[1:], name[1:])


@given(st.text("ab.*", min_size=1, max_size=7), st.text("ab.", max_size=7))
def test_patterns_mean_what_the_words_say(pattern: str, name: str) -> None:
    assert matches(pattern, name) == _naive(pattern, name)


@given(st.integers(1, 60))
def test_a_pattern_of_many_stars_takes_no_time(stars: int) -> None:
    assert not matches("*" * stars + "b" + "*a" * 3, "a" * 200)


# --- who may ask what ---------------------------------------------------------------------------------------

CLIENT = Client(7, 1000, "shop", "web")
PLAN = DnsPlan(
    port=15053,
    addresses=("10.96.0.10",),
    clients={"10.244.1.2": CLIENT, "10.244.1.3": Client(8, 2000, "shop", "free")},
    rules={
        1000: (
            Grant((102,), 17, 53, 53, ("*.example.com", "orders.shop.svc.cluster.local")),
            Grant((300,), 0, 0, 65535, None),
        )
    },
    lists={1 << 24: ("*.example.com",), (1 << 24) + 1: ("api.example.com",)},
    learns={1000: (1 << 24, (1 << 24) + 1)},
    services={
        "shop/orders": ServiceName(("10.96.4.4", "fd00:10:96::4"), (ServicePort("http", "TCP", 80),)),
        "data/db": ServiceName(
            ("10.244.1.9", "10.244.1.10"),
            (ServicePort("sql", "TCP", 5432),),
            {"db-0": ("10.244.1.9",), "db-1": ("10.244.1.10",)},
        ),
    },
)
RESOLVER = Resolver(PLAN)


@pytest.mark.parametrize(
    ("server", "protocol", "port", "name", "allowed"),
    [
        (102, 17, 53, "www.example.com", True),
        (102, 17, 53, "www.example.org", False),
        (102, 6, 53, "www.example.com", False),
        (102, 17, 5353, "www.example.com", False),
        (2, 17, 53, "www.example.com", False),
        (300, 17, 53, "www.example.org", True),
        (102, 17, 53, "orders", True),
        (102, 17, 53, "orders.shop", True),
        (102, 17, 53, "orders.other", False),
    ],
)
def test_who_may_ask_what(server: int, protocol: int, port: int, name: str, allowed: bool) -> None:
    assert RESOLVER.allowed(CLIENT, server, protocol, port, name) is allowed


def test_whom_no_rule_about_names_binds_asks_what_it_will() -> None:
    assert RESOLVER.allowed(PLAN.clients["10.244.1.3"], 2, 17, 53, "www.example.org")


def test_a_name_is_learned_by_the_lists_that_it_is_in() -> None:
    assert RESOLVER.lists(CLIENT, "api.example.com") == (1 << 24, (1 << 24) + 1)
    assert RESOLVER.lists(CLIENT, "www.example.com") == (1 << 24,)
    assert RESOLVER.lists(CLIENT, "www.example.org") == ()
    assert RESOLVER.lists(PLAN.clients["10.244.1.3"], "api.example.com") == ()


# --- what the mesh answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["orders", "orders.shop", "orders.shop.svc", "orders.shop.svc.cluster.local"]
)
def test_a_service_by_each_of_its_names(name: str) -> None:
    assert RESOLVER.answer(CLIENT, name, own=True) == Answered(addresses=("10.96.4.4", "fd00:10:96::4"))


@pytest.mark.parametrize(
    ("name", "answered"),
    [
        ("db.data", Answered(addresses=("10.244.1.9", "10.244.1.10"))),
        ("db", None),
        ("db-1.db.data.svc.cluster.local", Answered(addresses=("10.244.1.10",))),
        ("db-9.db.data.svc.cluster.local", Answered(exists=False)),
        ("gone.shop.svc.cluster.local", Answered(exists=False)),
        ("www.example.com", None),
        (
            "_http._tcp.orders.shop.svc.cluster.local",
            Answered(
                servers=((80, "orders.shop.svc.cluster.local"),),
                hosts=(
                    ("orders.shop.svc.cluster.local", "10.96.4.4"),
                    ("orders.shop.svc.cluster.local", "fd00:10:96::4"),
                ),
            ),
        ),
        (
            "_sql._tcp.db.data.svc.cluster.local",
            Answered(
                servers=(
                    (5432, "db-0.db.data.svc.cluster.local"),
                    (5432, "db-1.db.data.svc.cluster.local"),
                ),
                hosts=(
                    ("db-0.db.data.svc.cluster.local", "10.244.1.9"),
                    ("db-1.db.data.svc.cluster.local", "10.244.1.10"),
                ),
            ),
        ),
        ("4.4.96.10.in-addr.arpa", Answered(pointer="orders.shop.svc.cluster.local")),
        ("9.1.244.10.in-addr.arpa", Answered(pointer="db-0.db.data.svc.cluster.local")),
        ("9.9.9.9.in-addr.arpa", None),
    ],
)
def test_names_of_the_mesh(name: str, answered: Answered | None) -> None:
    assert RESOLVER.answer(CLIENT, name, own=True) == answered


def test_what_is_not_known_is_another_servers_matter_if_it_was_asked() -> None:
    assert RESOLVER.answer(CLIENT, "gone.shop.svc.cluster.local", own=False) is None


def _question(name: str, kind: str = "A") -> messages.Question:
    found = messages.read(dns.message.make_query(name, kind).to_wire())
    assert found is not None
    return found


def test_an_answer_holds_the_family_that_was_asked_for() -> None:
    found = Answered(addresses=("10.96.4.4", "fd00:10:96::4"))
    for kind, address in (("A", "10.96.4.4"), ("AAAA", "fd00:10:96::4")):
        question = _question("Orders.Shop", kind)
        message = messages.answers(question, messages.answer(question, found))
        assert message is not None
        assert messages.told(question, message) == ((address,), messages.SERVICE_TTL)


@pytest.mark.parametrize("wire", [b"", b"\0" * 11, b"\0" * 12, b"\xff" * 40])
def test_what_is_no_question_is_none(wire: bytes) -> None:
    assert messages.read(wire) is None


def _response(question: messages.Question, *records: str) -> dns.message.Message:
    message = dns.message.make_response(question.message)
    for record in records:
        owner, ttl, kind, value = record.split()
        message.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, value))
    return message


def test_an_alias_leads_to_the_addresses_and_the_least_time_counts() -> None:
    question = _question("www.example.com")
    found = _response(question, "www.example.com. 300 CNAME edge.cdn.net.", "edge.cdn.net. 20 A 192.0.2.4")
    assert messages.told(question, found) == (("192.0.2.4",), 20)


def test_an_address_that_the_name_does_not_lead_to_says_nothing_of_it() -> None:
    question = _question("www.example.com")
    found = _response(question, "www.example.com. 300 A 192.0.2.4", "evil.example.org. 300 A 192.0.2.66")
    assert messages.told(question, found) == (("192.0.2.4",), 300)


def test_an_alias_of_itself_ends() -> None:
    question = _question("www.example.com")
    found = _response(question, "www.example.com. 300 CNAME www.example.com.")
    assert messages.told(question, found) == ((), 0)


# --- how long an address counts -----------------------------------------------------------------------------


def test_an_address_counts_for_its_time_and_the_grace() -> None:
    recorded = Recorded(grace=10)
    recorded.learn(7, "a.example.com", ["192.0.2.1"], until=100)
    assert recorded.next_end() == 110
    assert recorded.over(109.9) == []
    assert recorded.over(110) == [(7, "192.0.2.1")]


def test_of_two_names_the_one_that_is_over_goes_alone() -> None:
    recorded = Recorded(grace=10)
    recorded.learn(7, "a.example.com", ["192.0.2.1"], until=100)
    recorded.learn(7, "b.example.com", ["192.0.2.1"], until=200)
    assert recorded.faded(110) == [(7, "192.0.2.1")]
    assert list(recorded.entries[7, "192.0.2.1"].names) == ["b.example.com"]
    assert recorded.over(110) == []


def test_one_workload_cannot_fill_the_table() -> None:
    recorded = Recorded(grace=10)
    recorded.learn(7, "a", [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(MOST_ADDRESSES)], 100)
    with pytest.raises(FullError):
        recorded.learn(7, "a", ["192.0.2.1"], 100)
    recorded.learn(8, "a", ["192.0.2.1"], 100)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.sampled_from("ab"),
            st.sampled_from(["192.0.2.1", "192.0.2.2"]),
            st.integers(1, 50),
        ),
        max_size=12,
    ),
    st.integers(0, 80),
)
def test_what_is_there_is_what_the_answers_say(answers: list[tuple[int, str, str, int]], now: int) -> None:
    recorded = Recorded(grace=10)
    for ifindex, name, address, until in answers:
        recorded.learn(ifindex, name, [address], until)
    recorded.faded(now)
    recorded.forget(recorded.over(now))
    assert recorded.entries.keys() == {(i, a) for i, _, a, until in answers if until + 10 > now}
    copy = Recorded(grace=10)
    copy.restore(recorded.lines())
    assert copy.entries == recorded.entries
