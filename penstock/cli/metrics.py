"""`penstock metrics`: what the daemon counts, in Prometheus' text format."""

from __future__ import annotations

import json
from pathlib import Path

import click

from penstock.cli.options import run_dir_option


@click.command()
@run_dir_option
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def metrics(run_dir: Path, output: str) -> None:
    """Print the metrics as a monitoring system gets them from `run --metrics ADDRESS:PORT`."""
    from penstock.control import ControlClient

    with ControlClient(run_dir) as client:
        text = client.call("metrics")["text"]
    if output == "text":
        click.echo(text, nl=False)
        return
    from prometheus_client.parser import text_string_to_metric_families

    samples = [
        {"name": sample.name, "labels": dict(sample.labels), "value": sample.value}
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]
    click.echo(json.dumps(samples, indent=2))
