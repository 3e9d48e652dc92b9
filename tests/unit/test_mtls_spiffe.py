"""One spelling of an identity, and no other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.mtls.errors import SpiffeIdError
from penstock.mtls.spiffe import SpiffeId, check_trust_domain, for_workload, parse

DOMAINS = st.text("abcz019.-_", min_size=1, max_size=255)
SEGMENTS = st.text("abzAZ09.-_", min_size=1).filter(lambda s: s not in (".", ".."))


@given(DOMAINS, st.lists(SEGMENTS, max_size=5))
def test_what_is_valid_comes_back_as_it_was(domain: str, segments: list[str]) -> None:
    text = f"spiffe://{domain}" + "".join(f"/{segment}" for segment in segments)
    assert str(parse(text)) == text


@given(st.text())
def test_whatever_is_taken_is_spelled_the_same_again(text: str) -> None:
    try:
        found = parse("spiffe://" + text)
    except SpiffeIdError:
        return
    assert str(found) == "spiffe://" + text


def test_the_id_of_a_service_account() -> None:
    found = for_workload("penstock.local", "default", "web")
    assert found == SpiffeId("penstock.local", "/ns/default/sa/web")
    assert str(found) == "spiffe://penstock.local/ns/default/sa/web"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "must begin"),
        ("https://a/b", "must begin"),
        ("SPIFFE://a/b", "must begin"),
        ("spiffe:/a/b", "must begin"),
        ("spiffe://", "not a trust domain"),
        ("spiffe:///ns/a", "not a trust domain"),
        ("spiffe://Mesh.test/a", "not a trust domain"),
        ("spiffe://mesh.test:443/a", "not a trust domain"),
        ("spiffe://user@mesh.test/a", "not a trust domain"),
        ("spiffe://mesh.test?x/a", "not a trust domain"),
        ("spiffe://mesh.tést/a", "not a trust domain"),
        ("spiffe://mesh.test\n/a", "not a trust domain"),
        ("spiffe://" + "a" * 256, "255 bytes"),
        ("spiffe://mesh.test/", "empty path segment"),
        ("spiffe://mesh.test/a/", "empty path segment"),
        ("spiffe://mesh.test/a//b", "empty path segment"),
        ("spiffe://mesh.test/a/../b", "'..' as a path segment"),
        ("spiffe://mesh.test/./b", "'.' as a path segment"),
        ("spiffe://mesh.test/a%20b", "only letters"),
        ("spiffe://mesh.test/a?b", "only letters"),
        ("spiffe://mesh.test/a#b", "only letters"),
        ("spiffe://mesh.test/a\n", "only letters"),
        ("spiffe://mesh.test/" + "a" * 2048, "2048 bytes"),
    ],
)
def test_what_is_not_an_id_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(SpiffeIdError, match=reason.replace(".", r"\.")):
        parse(text)


def test_a_name_cannot_smuggle_path_segments() -> None:
    with pytest.raises(SpiffeIdError, match="slash"):
        for_workload("mesh.test", "default/sa/admin", "web")
    with pytest.raises(SpiffeIdError):
        for_workload("mesh.test", "default", "..")
    assert check_trust_domain("a_b.c-d") == "a_b.c-d"
