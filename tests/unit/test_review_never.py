"""What no request can have, what regular expressions cover, and certificates that fade."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st
from test_review_edge import gateway, secret
from test_routing_mesh import route
from worlds import policy

from penstock.manifests.loader import load
from penstock.routing import patterns
from penstock.routing.review_expiry import review_expiry
from penstock.routing.review_never import review_never


def rule(http: str) -> str:
    return policy(
        "{endpointSelector: {}, egress: [{toPorts: [{ports: [{port: '80', protocol: TCP}],"
        f" rules: {{http: [{http}]}}}}]}}]}}"
    )


HTTP = "spec.egress[0].toPorts[0].rules.http[0]"


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (rule("{path: 'orders/.*'}"), f"{HTTP}.path"),
        (rule("{path: '/a//b'}"), f"{HTTP}.path"),
        (rule("{path: '(/a|b)/.*'}"), ""),
        (rule("{path: '.*a'}"), ""),
        (rule("{path: '^/a$', method: 'GET|get'}"), ""),
        (rule(r"{path: '/a\?b=//c'}"), ""),
        (rule("{method: get}"), f"{HTTP}.method"),
        (rule("{method: '[A-Z]+'}"), ""),
        (
            route("[{matches: [{path: {type: RegularExpression, value: 'a.*'}}]}]"),
            "spec.rules[0].matches[0].path.value",
        ),
    ],
)
def test_what_no_request_has(text: str, field: str) -> None:
    loaded = load(text, "f")
    assert not [p for p in loaded.problems if p.severity == "error"], loaded.problems
    found = review_never(loaded.documents)
    assert [(p.field, p.code, p.severity) for p in found] == ([(field, "never", "warning")] if field else [])


ATOMS = st.sampled_from(
    ["/", "a", "b", "[ab]", ".", ".*", "a+", "b?", "(a|/b)", "(/a)*", "[^/]+", "a{2}", "/a"]
)
PATTERNS = st.lists(ATOMS, max_size=5).map("".join)
PATHS = st.text("/ab", max_size=6)


@given(PATTERNS, PATHS)
def test_what_is_said_of_a_pattern_holds_for_every_path(pattern: str, path: str) -> None:
    if re2.fullmatch(pattern, path) is None:
        return
    begins = patterns.heads(pattern)
    assert any(path == h.text if h.whole else path.startswith(h.text) for h in begins)
    if path.startswith("/") and "//" not in path:
        assert not patterns.never(pattern)
    if patterns.within(pattern, "/a"):
        assert path == "/a" or path.startswith("/a/")


@given(PATTERNS, PATTERNS, PATHS)
def test_a_pattern_that_covers_another_matches_what_that_does(one: str, other: str, path: str) -> None:
    if patterns.all_of(one, other) and re2.fullmatch(other, path) is not None:
        assert re2.fullmatch(one, path) is not None


def test_what_is_read_otherwise_is_left_open() -> None:
    for pattern in ("[[:alpha:]]+", "(?i)/A", r"\pL", "(", "a" * 9 + "|b" * 99):
        assert not patterns.never(pattern) or re.match("a", pattern)
    assert patterns.heads("[[:alpha:]]") == patterns.OPEN


def test_certificates_that_fade() -> None:
    """Those of the tests are good until tomorrow."""
    documents = load(
        secret("s", "a.example") + secret("unused", "a.example") + gateway("certificateRefs: [{name: s}]"),
        "f",
    ).documents
    now = datetime.now(UTC)
    for later, words in ((0, "expires on"), (2, "expired on"), (-30, "")):
        found = review_expiry(documents, now + timedelta(days=later))
        assert [(p.name, p.field, p.code) for p in found] == (
            [("s", 'stringData["tls.crt"]', "expiry")] if words else []
        )
        assert all(words in p.message and p.severity == "warning" and p.line for p in found)
