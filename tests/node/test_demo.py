"""`penstock demo` from outside: it shows what it says, it can fail, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

DEMO = [sys.executable, "-m", "penstock.cli", "demo"]
EXAMPLES = Path(__file__).parents[2] / "examples"
STEPS = [
    "l4-allowed",
    "l4-dropped",
    "l7-allowed",
    "l7-denied",
    "split",
    "mtls",
    "unauthorised",
    "live-change",
]


def lab_name(progress: str) -> str:
    """The demo says first which lab it makes."""
    return progress.partition("lab ")[2].partition(":")[0]


def left_of(lab: str) -> list[str]:
    """What is still there of a demo: namespaces, mounts, directories, processes."""
    assert lab.startswith("demo-")
    found = [str(p) for d in ("/run/netns", "/run/penstock-lab", "/run") for p in Path(d).glob(f"*{lab}*")]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if lab in line]
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = process.read_bytes()
        except OSError:
            continue
        if lab.encode() in command:
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


def shown(*arguments: str, code: int) -> dict[str, Any]:
    done = subprocess.run(
        [*DEMO, "-o", "json", *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert left_of(lab_name(done.stderr)) == []
    data = json.loads(done.stdout)
    assert isinstance(data, dict)
    return data


def test_every_step_holds_and_nothing_is_left() -> None:
    data = shown(code=0)
    assert data["ok"] is True
    assert [step["name"] for step in data["steps"]] == STEPS
    for step in data["steps"]:
        assert step["ok"] is True, step
        assert step["sent"] and step["got"]


def test_a_claim_that_does_not_hold_is_told_and_the_exit_code_says_so(tmp_path: Path) -> None:
    examples = shutil.copytree(EXAMPLES, tmp_path / "examples")
    route = examples / "manifests" / "route.yaml"
    even = route.read_text().replace("weight: 90", "weight: 50").replace("weight: 10", "weight: 50")
    route.write_text(even)
    (examples / "manifests" / "mtls.yaml").unlink()
    data = shown("--examples", str(examples), code=1)
    assert data["ok"] is False
    assert [step["name"] for step in data["steps"] if not step["ok"]] == ["split", "mtls", "unauthorised"]


def test_an_interruption_leaves_nothing() -> None:
    with subprocess.Popen([*DEMO], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None and demo.stdout is not None
        progress = demo.stderr.readline()
        # The first line of the first step: daemons, Envoys and programs are up.
        assert "1 " in demo.stdout.readline()
        assert left_of(lab_name(progress)) != []
        os.kill(demo.pid, signal.SIGTERM)
        demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert left_of(lab_name(progress)) == []


def test_a_wrong_folder_is_bad_usage(tmp_path: Path) -> None:
    done = subprocess.run(
        [*DEMO, "--examples", str(tmp_path)], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 2
    assert "lab.yaml" in done.stderr
    assert done.stdout == ""
