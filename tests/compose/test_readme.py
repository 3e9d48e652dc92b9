"""The README's Compose section, typed as it stands there: each command prints what the README says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from penstock.lab.engine import Engine

ROOT = Path(__file__).parents[2]
END = "--- end of block ---"


def blocks() -> list[tuple[str, str]]:
    """What is to be typed, and what it prints (nothing, where no text follows)."""
    section = (ROOT / "README.md").read_text().partition("## With Docker Compose")[2].partition("\n## ")[0]
    pattern = r"```sh\n(.*?)```\n(?:\n```text\n(.*?)```)?"
    return [(typed, printed or "") for typed, printed in re.findall(pattern, section, re.DOTALL)]


def plain(text: str) -> list[str]:
    """Without what differs from run to run: numbers, the machine's name, the width of columns."""
    text = re.sub(r"^node \S+:", "node NAME:", text, flags=re.MULTILINE)
    text = re.sub(r"\d[\d.:]*", "N", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


@pytest.fixture
def directory() -> Path:
    """Where the README works; of ours alone, since others may follow it here too."""
    return Path(f"/tmp/shop{os.getpid()}")


def test_the_compose_section_prints_what_the_readme_says(
    docker: Engine, image: str, directory: Path, tmp_path: Path
) -> None:
    found = blocks()
    assert len(found) == 5
    # The first block builds the image, which is done.
    typed = [block.replace("docker build -q -t penstock . > /dev/null\n", "") for block, _ in found]
    script = "".join(f"{block}echo '{END}'\n" for block in typed).replace("/tmp/shop", str(directory))
    run_dir = docker.base / "run-readme"
    run_dir.mkdir()
    environment = {
        **docker.environment,
        "PENSTOCK_RUN": str(run_dir),
        "PENSTOCK_DOCKER_SOCKET": str(docker.socket),
        "PENSTOCK_BASE": image,
        "COMPOSE_PROJECT_NAME": "shop",
        "PENSTOCK": str(ROOT),
    }
    file = tmp_path / "typed"
    file.write_text(script)
    try:
        done = subprocess.run(
            ["bash", str(file)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=300,
        )
        printed = [plain(part) for part in done.stdout.split(END)]
        assert len(printed) == len(found) + 1, done.stdout
        for (block, promised), got in zip(found, printed, strict=False):
            assert got == plain(promised), block
        assert not directory.exists()
        assert not docker.docker("ps", "-aq", "--filter", "label=com.docker.compose.project=shop")
        assert not list(run_dir.iterdir()), "`down` leaves nothing there"
    finally:
        if directory.exists():
            for command in (["stop", "-t", "1"], ["run", "--rm", "penstock", "down"], ["down", "-v"]):
                subprocess.run(["docker-compose", *command], cwd=directory, env=environment, check=False)
            shutil.rmtree(directory)
