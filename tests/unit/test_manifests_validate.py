"""`penstock validate`: what it prints, and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from penstock.cli.validate import validate

GOOD = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {ports: [{port: 80}]}\n"
NOTICE = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n"
BAD = "apiVersion: v2\nkind: Service\nmetadata: {name: b}\n"


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    result = CliRunner().invoke(validate, [str(a) for a in arguments], input=stdin)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_notices_and_warnings_are_no_refusal(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD + "---\n" + NOTICE)
    result = run("-f", tmp_path)
    assert result.exit_code == 0
    file = tmp_path / "a.yaml"
    assert result.stdout.splitlines() == [
        f"{file}:4: Service default/a: spec: has no selector and no EndpointSlice; give it a selector, "
        "or an EndpointSlice with the label kubernetes.io/service-name: a [warning]",
        f"{file}:6: Deployment a: passed over: Penstock has no use for this kind [notice]",
    ]
    assert "1 object" in result.stderr


def test_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD)
    (tmp_path / "b.yaml").write_text(BAD)
    result = run("-f", tmp_path / "a.yaml", "-f", tmp_path / "b.yaml")
    assert result.exit_code == 2
    assert result.stdout.splitlines()[-1] == (
        f'{tmp_path}/b.yaml:1: Service default/b: apiVersion: "v2" is not the apiVersion of Service; write v1'
    )


def test_several_paths_after_one_option(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(GOOD.replace("name: a", f"name: {name}"))
    result = run("-o", "json", "-f", tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert json.loads(result.stdout)["files"] == 2


def test_standard_input_and_json() -> None:
    result = run("-f", "-", "-o", "json", stdin=BAD)
    assert result.exit_code == 2
    shown = json.loads(result.stdout)
    assert (shown["ok"], shown["files"], shown["objects"]) == (False, 1, 0)
    (problem,) = shown["problems"]
    assert problem["message"] == '"v2" is not the apiVersion of Service'
    assert (problem["file"], problem["line"], problem["code"]) == ("(stdin)", 1, "apiVersion")


@pytest.mark.parametrize("arguments", [[], ["-f", "/nonexistent/a.yaml"]])
def test_bad_usage(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and result.stdout == "" and result.stderr != ""


def test_it_needs_nothing_of_the_data_plane() -> None:
    code = (
        "import sys, penstock.cli.validate\n"
        "print([m for m in ('grpc', 'pyroute2', 'asyncinotify', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_older_file_is_first(tmp_path: Path) -> None:
    """As for the daemon: at a tie the older route is tried before, whatever the names are."""
    for name, since in (("a", 200), ("b", 100)):
        file = tmp_path / f"{name}.yaml"
        file.write_text(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n"
            f"metadata: {{name: {name}}}\nspec: {{parentRefs: [{{name: gw}}], rules: [{{}}]}}\n"
        )
        os.utime(file, (since, since))
    shown = json.loads(run("-f", tmp_path, "-o", "json").stdout)
    assert [p["name"] for p in shown["problems"] if p["code"] == "shadowed"] == ["a"]
