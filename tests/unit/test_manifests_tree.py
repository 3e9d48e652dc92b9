"""Text to values: lines, YAML's traps, and text that is made to hurt."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.manifests.tree import MAX_TEXT, Broken, RawDocument, parse


def one(text: str) -> RawDocument:
    (document,) = parse(text)
    assert isinstance(document, RawDocument), document
    return document


def broken(text: str) -> Broken:
    (found,) = [d for d in parse(text) if isinstance(d, Broken)]
    return found


def test_every_field_and_item_has_its_line() -> None:
    document = one("# a comment\na:\n  b: 1\n  c:\n  - x\n  - y: {z: 2}\n")
    assert document.line == 2
    assert document.lines == {
        ("a",): 2,
        ("a", "b"): 3,
        ("a", "c"): 4,
        ("a", "c", 0): 5,
        ("a", "c", 1): 6,
        ("a", "c", 1, "y"): 6,
        ("a", "c", 1, "y", "z"): 6,
    }


def test_lines_go_on_over_several_documents() -> None:
    first, second = parse("a: 1\n---\n\nb: 2\n")
    assert isinstance(first, RawDocument) and isinstance(second, RawDocument)
    assert (first.line, second.line, second.lines["b",]) == (1, 4, 4)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", True),
        ("No", False),
        ("~", None),
        ("010", 8),
        ("0x1F", 31),
        ("1e3", 1000.0),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ('"80"', "80"),
        ("!!str 80", "80"),
        ("9" * 5000, "9" * 5000),
        ("-", [None]),
    ],
)
def test_scalars_are_read_as_kubernetes_reads_them(text: str, value: object) -> None:
    assert one(f"a: {text}" if text != "-" else "a:\n- ").value == {"a": value}


_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**12), 10**12) | _TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
        max_leaves=10,
    )
)
def test_json_reads_as_json(value: object) -> None:
    assert one(json.dumps({"a": value}, indent=1)).value == {"a": value}


def test_a_key_given_twice_is_found_with_both_lines() -> None:
    (finding,) = one("a: 1\nb: 2\na: 3\n").findings
    assert (finding.path, finding.message) == (("a",), "is given twice, first on line 1")


def test_anchors_and_merges_are_copies() -> None:
    value = one("base: &b {x: 1, y: 2}\nuse:\n  <<: *b\n  y: 3\nagain: *b\n").value
    assert value["use"] == {"x": 1, "y": 3}
    assert value["again"] == {"x": 1, "y": 2}
    assert value["again"] is not value["base"]


def test_a_billion_laughs_are_cut_short() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 15))
    start = time.process_time()
    assert "aliases" in broken(text).message
    assert time.process_time() - start < 2


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: *b"])
def test_an_alias_needs_an_anchor_that_is_complete(text: str) -> None:
    assert "has no anchor before it" in broken(text).message


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_depth_is_bounded(opening: str) -> None:
    assert "deeper" in broken(opening * 200_000).message


def test_size_is_bounded() -> None:
    assert "larger than 16 MiB" in broken("a" * (MAX_TEXT + 1)).message


def test_text_that_is_no_text() -> None:
    assert broken("a: 1\nb: \udcff\n").message == "is not UTF-8 text"
    assert broken("a: 1\nb: \x07\n") == Broken(2, "holds the control character U+0007")


def test_a_tab_is_named() -> None:
    found = broken("a:\n\tb: 1\n")
    assert (found.line, found.message, found.hint) == (
        2,
        "found a tab in the indentation",
        "indent with spaces",
    )


def test_an_open_quote_is_shown_where_it_opens_and_the_next_document_is_read() -> None:
    first, second = parse("a: 1\nb: 'x\n---\nc: 3\n")
    assert isinstance(first, Broken) and isinstance(second, RawDocument)
    assert first.line == 2
    assert (second.value, second.line) == ({"c": 3}, 4)


def test_documents_around_a_broken_one_are_read() -> None:
    found = list(parse("a: 1\n---\nb: [1\n---\nc: 3\n---\nd: : :\n---\ne: 5\n"))
    assert [d.value for d in found if isinstance(d, RawDocument)] == [{"a": 1}, {"c": 3}, {"e": 5}]
    assert len(found) == 5


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters(codec="utf-8") | st.sampled_from("{}[]:-&*!|>'\"%@#\n\t ---<<?,\\u"), max_size=200)
)
def test_no_text_raises(text: str) -> None:
    for document in parse(text):
        assert document.line >= 1
