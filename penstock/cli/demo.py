"""`penstock demo`: brings up a lab of two nodes and shows, step by step, what Penstock does."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STYLES = {
    "ok": {"fg": "green", "bold": True},
    "fail": {"fg": "red", "bold": True},
    "dim": {"fg": "green"},
}


@click.command()
@click.option(
    "--examples",
    type=click.Path(file_okay=False, path_type=Path),
    default=EXAMPLES,
    help="Folder with lab.yaml and manifests/.  [default: examples/ of the checkout]",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="How to print.",
)
def demo(examples: Path, output: str) -> int:
    """Bring up a lab of two nodes and show what Penstock does: what was sent, what came back, where it went.

    Ends by itself and leaves nothing behind. Exits 0 only if every step held.
    """
    from penstock.cli.observe import line
    from penstock.demo import report, steps
    from penstock.demo.mesh import mesh

    began = time.monotonic()
    done = []

    def say(text: str) -> None:
        click.secho(f"[{time.monotonic() - began:5.1f} s] {text}", err=True, dim=True)

    def tell(record: dict[str, Any]) -> str:
        return click.unstyle(line(record)).partition(" ")[2]  # without the time

    with mesh(examples, say, tell) as stage:
        for number, act in enumerate(steps.ACTS, 1):
            if output == "text" and sys.stderr.isatty():
                click.secho(f"{number} …\r", err=True, nl=False)
            found = steps.run(act, stage)
            done.append(found)
            for style, text in report.lines(number, found) if output == "text" else ():
                click.secho(text, **STYLES.get(style, {}))  # type: ignore[arg-type]
    result = report.as_data(done)
    held = sum(step.ok for step in done)
    if output == "json":
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        click.secho(f"\n{held} of {len(done)} steps held", **STYLES["ok" if result["ok"] else "fail"])  # type: ignore[arg-type]
    say("done")
    return 0 if result["ok"] else 1
