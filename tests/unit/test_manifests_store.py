"""The last good version: what stays, what goes, and what counts as a change."""

from __future__ import annotations

from penstock.manifests.document import ObjectKey
from penstock.manifests.store import ChangeResult, Store


def service(name: str, port: object = 80, kind: str = "Service") -> str:
    return f"apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"


def key(name: str) -> ObjectKey:
    return ObjectKey("Service", "default", name)


def names(result: ChangeResult) -> list[str]:
    return [k.name for k in result.documents]


def port(result: ChangeResult, name: str) -> int:
    value = result.documents[key(name)].value
    return value.spec.ports[0].port  # type: ignore[union-attr]


def test_a_bad_document_keeps_its_last_good_version_and_the_others_apply() -> None:
    store = Store()
    store.apply({"f": service("a") + "---\n" + service("b")})
    result = store.apply({"f": service("a", "x") + "---\n" + service("b", 81)})
    assert (port(result, "a"), port(result, "b")) == (80, 81)
    assert [str(p) for p in result.problems] == [
        'f:4: Service default/a: spec.ports[0].port: must be an integer, not "x"'
    ]
    result = store.apply({"f": service("a", 82) + "---\n" + service("b", 81)})
    assert (port(result, "a"), result.problems) == (82, ())


def test_a_bad_document_that_never_was_good_is_not_there() -> None:
    result = Store().apply({"f": service("a", "x")})
    assert not result.documents and len(result.problems) == 1


def test_a_syntax_error_keeps_all_of_its_file() -> None:
    store = Store()
    store.apply({"f": service("a") + "---\n" + service("b"), "g": service("c")})
    result = store.apply({"f": "a: [\n---\n" + service("b", 81)})
    assert names(result) == ["a", "b", "c"]
    assert (port(result, "a"), port(result, "b")) == (80, 81)


def test_a_misspelt_kind_keeps_the_object() -> None:
    store = Store()
    store.apply({"f": service("a") + "---\n" + service("b")})
    result = store.apply({"f": service("a", kind="Servce")})
    assert names(result) == ["a"]


def test_a_kept_version_stays_kept() -> None:
    store = Store()
    store.apply({"f": service("a")})
    for _ in range(3):
        result = store.apply({"f": service("a", "x")})
        assert names(result) == ["a"] and not result.changed


def test_an_object_that_is_taken_out_goes_although_another_is_bad() -> None:
    store = Store()
    store.apply({"f": service("a") + "---\n" + service("b")})
    assert names(store.apply({"f": service("a", "x")})) == ["a"]


def test_a_deleted_file_takes_its_objects_with_it() -> None:
    store = Store()
    store.apply({"f": service("a"), "g": service("b")})
    result = store.apply({"f": None})
    assert names(result) == ["b"] and result.changed
    assert store.apply({"f": None}).changed is False


def test_a_file_that_is_renamed_and_broken_in_one_change_keeps_its_object() -> None:
    store = Store()
    store.apply({"f": service("a")})
    result = store.apply({"f": None, "g": service("a", "x")})
    assert names(result) == ["a"] and not result.changed


def test_generation_counts_changes_of_content_only() -> None:
    store = Store()
    assert store.apply({"f": service("a")}, {"f": 1.0}).documents[key("a")].generation == 1
    result = store.apply({"f": service("a")}, {"f": 1.0})
    assert not result.changed
    result = store.apply({"f": "# moved down\n" + service("a")}, {"f": 2.0})
    document = result.documents[key("a")]
    assert result.changed and (document.generation, document.line, document.since) == (1, 2, 2.0)
    result = store.apply({"f": service("a", 81)})
    assert result.documents[key("a")].generation == 2
    result = store.apply({"f": None, "g": service("a", 81)})
    assert (result.documents[key("a")].generation, result.documents[key("a")].file) == (2, "g")


def test_the_first_file_by_path_wins() -> None:
    store = Store()
    result = store.apply({"b": service("x", 2), "a": service("x", 1)})
    assert port(result, "x") == 1
    assert [str(p) for p in result.problems] == [
        "b:1: Service default/x: is already given at a:1, which is in force; remove one of them"
    ]
    assert result.problems[0].severity == "error"
    result = store.apply({"a": service("x", "bad")})
    assert port(result, "x") == 1
    result = store.apply({"a": None})
    assert (port(result, "x"), result.problems) == (2, ())
    assert result.documents[key("x")].generation == 2


def test_twice_in_one_file() -> None:
    result = Store().apply({"a": service("x", 1) + "---\n" + service("x", 2)})
    assert port(result, "x") == 1 and len(result.problems) == 1


def test_the_order_of_files_in_a_change_does_not_matter() -> None:
    files = {"a": service("x"), "b": service("y"), "c": service("x", 9)}
    one, two = Store().apply(files), Store().apply(dict(reversed(files.items())))
    assert one == two and list(one.documents) == list(two.documents)
