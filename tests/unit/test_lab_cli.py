"""The command line's own promises: exit codes, errors on stderr, plain output in a pipe, quick to start."""

from __future__ import annotations

import json
import subprocess
import sys
from types import ModuleType

import click
import pytest
import yaml

from penstock import cli
from penstock.cli.options import output_option, run_dir_option
from penstock.cli.output import show
from penstock.errors import HostError, InputError, NoDaemonError, PenstockError, UsageError

ROWS = [("frontend", "ok", ""), ("a-much-longer-name", "fail", "mend it")]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> str:
    """A command `probe` that raises what it is told, or prints."""

    @click.command()
    @click.option("--raise", "wanted", default="")
    @run_dir_option
    @output_option
    def probe(wanted: str, run_dir: object, output: str) -> int:
        errors = (PenstockError, UsageError, InputError, NoDaemonError, HostError)
        for error in errors:
            if error.__name__ == wanted:
                raise error("it went wrong", hint="try again")
        show({"dir": str(run_dir)}, output, columns=("NAME", "STATE", "MEND"), rows=ROWS)
        return 1 if wanted == "result" else 0

    module = ModuleType("penstock.cli.probe")
    module.probe = probe  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "penstock.cli.probe", module)
    monkeypatch.setitem(cli.COMMANDS, "probe", "A command.")
    return "probe"


@pytest.mark.parametrize(
    ("wanted", "code"),
    [("PenstockError", 1), ("HostError", 1), ("UsageError", 2), ("InputError", 2), ("NoDaemonError", 3)],
)
def test_an_error_tells_its_message_and_hint_and_sets_the_exit_code(
    command: str, wanted: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([command, "--raise", wanted]) == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "penstock: it went wrong\n  try again\n")


@pytest.mark.parametrize(
    "argv", [["nonsense"], ["probe", "--nonsense"], ["probe", "-o", "xml"], ["--nonsense"]]
)
def test_wrong_usage_exits_2(command: str, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: penstock" in err


def test_a_command_that_returns_1_exits_1(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command, "--raise", "result"]) == 1
    assert capsys.readouterr().err == ""


def test_output_is_a_plain_table_json_or_yaml(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([command]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME                STATE  MEND",
        "frontend            ok",
        "a-much-longer-name  fail   mend it",
    ]
    assert cli.run([command, "-o", "json", "--run-dir", "/run/other"]) == 0
    assert json.loads(capsys.readouterr().out) == {"dir": "/run/other"}
    assert cli.run([command, "-o", "yaml"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"dir": "/run/penstock"}


def test_the_run_directory_may_come_from_the_environment(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENSTOCK_RUN_DIR", "/run/by-environment")
    assert cli.run([command, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"dir": "/run/by-environment"}


def test_help_lists_every_command_and_loads_none_of_the_heavy_parts() -> None:
    code = (
        "import sys; from penstock import cli; code = cli.run(['--help']);"
        "heavy = {'grpc', 'google', 'aiohttp', 'pyroute2', 'yaml', 'msgspec', 'rich'} & set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in cli.COMMANDS:
        assert f"\n  {name} " in done.stdout


def test_a_reader_that_goes_away_gets_no_traceback() -> None:
    code = (
        "import sys, os; r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
        "from penstock import cli; cli.main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
