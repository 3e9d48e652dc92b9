"""The result of a benchmark as one HTML page that needs nothing else: table, bars, and plots."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from penstock.bench import plots

_STYLE = """\
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 84em; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; } td, th { padding: .15em .7em; text-align: right; }
td:first-child, th:first-child { text-align: left; } tr:nth-child(even) { background: #f4f4f4; }
svg { max-width: 100%; margin: .5em 1em .5em 0; } .plots { display: flex; flex-wrap: wrap; }
.missed { color: #b00; } .held { color: #070; } .noisy { color: #960; }
"""


def page(data: Mapping[str, Any], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """The page of a result of `bench latency`; `rows` are those of its table."""
    colours = _colours(data)
    drawn = [
        plots.throughput(data, colours),
        plots.cpu(data, colours),
        *(plots.cdf(data, c) for c in data["arms"]["none"]),
        plots.memory(data, colours),
    ]
    return document(
        "One node proxy against sidecars", data, data["settings"]["arms"], drawn, columns, rows,
        "Between nodes no hop is saved: each node's Envoy takes part, as two sidecars would.",
    )  # fmt: skip


def _colours(data: Mapping[str, Any]) -> dict[str, str]:
    return {arm: plots.COLOUR[arm] for arm in data["arms"]}


def document(
    title: str,
    data: Mapping[str, Any],
    words: Mapping[str, str],
    drawn: Iterable[str],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    remark: str = "",
) -> str:
    """One page: machine, method, bars, `drawn` plots (SVG), table. `words` say what the arms are."""
    machine, colours = data["machine"], _colours(data)
    about = f"{machine['cpu']}, {machine['cpus']} CPUs, Linux {machine['kernel']}, {machine['envoy']}"
    legend = "".join(
        f'<span style="color:{colours[arm]}">■</span> {escape(words[arm])} &nbsp; ' for arm in data["arms"]
    )
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1>",
        f"<p>{escape(about)}, {escape(data['date'])}, load {machine['load'][0]:.1f}.</p>",
        f"<p>{escape(data['method'])}. {escape(remark)}</p>",
        _bars(data["bars"]),
        f"<p>{legend}</p><div class=plots>{''.join(drawn)}</div>",
        _table(columns, rows),
    ]
    return "\n".join(parts) + "\n</html>\n"


def _table(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _bars(bars: Iterable[Mapping[str, Any]]) -> str:
    lines = []
    for bar in bars:
        verdict = ("held" if bar["held"] else "missed") if bar["clear"] else "noisy"
        sign = "≥" if bar["above"] else "&lt;"
        lines.append(
            f"<tr><td>{escape(bar['name'])}</td><td>{bar['value']:g}</td><td>{sign} {bar['limit']:g}</td>"
            f'<td class="{verdict}">{verdict}</td></tr>'
        )
    return f"<table><tr><th>ratio<th>measured<th>bar<th></tr>{''.join(lines)}</table>"
