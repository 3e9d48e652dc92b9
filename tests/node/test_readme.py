"""The README's first policy, typed as it stands there: each command prints what the README says.

What differs from run to run is taken out on both sides: numbers, and the width of columns. The lab's names
are made unique, since others may follow the README on the same machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import lab

README = Path(__file__).parents[2] / "README.md"
END = "--- end of block ---"
MINE = f"try{os.getpid()}"


def blocks() -> list[tuple[str, str]]:
    """What is to be typed, and what it prints (nothing, where no text follows)."""
    section = README.read_text().partition("## Your first policy")[2].partition("\n## ")[0]
    pattern = r"```sh\n(.*?)```\n(?:\n```text\n(.*?)```)?"
    return [(typed, printed or "") for typed, printed in re.findall(pattern, section, re.DOTALL)]


def plain(text: str) -> list[str]:
    text = text.replace(MINE, "try").replace(f"node-{os.getpid()}", "node-1")
    text = re.sub(r"\d[\d.:]*", "N", text)
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture
def environment() -> dict[str, str]:
    """`make setup` was done: its first block is the only one that is not run."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PENSTOCK_RUN_DIR": f"/run/{MINE}", "PYTHONUNBUFFERED": "1"}


def test_the_first_policy_prints_what_the_readme_says(environment: dict[str, str], tmp_path: Path) -> None:
    found = blocks()
    assert len(found) == 9
    typed = [re.sub(r"^(make|export) .*\n", "", block, flags=re.MULTILINE) for block, _ in found]
    script = "".join(f"{block}echo '{END}'\n" for block in typed)
    script = re.sub(r"\btry\b", MINE, script).replace("node-1", f"node-{os.getpid()}")
    file = tmp_path / "typed"
    file.write_text(script)
    try:
        done = subprocess.run(
            ["bash", str(file)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        printed = [plain(part) for part in done.stdout.split(END)]
        for (block, promised), got in zip(found, printed, strict=False):
            assert [line for line in got if line] == plain(promised), block
        assert not Path(f"/run/{MINE}").exists()
        assert not Path(f"/tmp/{MINE}").exists()
    finally:
        lab.down(MINE)
        subprocess.run([sys.executable, "-m", "penstock.cli", "down"], env=environment, check=True)
        shutil.rmtree(f"/tmp/{MINE}", ignore_errors=True)
