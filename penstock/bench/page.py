"""The result of a benchmark as one HTML page that needs nothing else: table, bars, and plots.

Plots are SVG, written here: a few lines and rectangles are not worth a plotting library. Bands reach from the
lowest to the highest round; lines and columns are what the table says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

from penstock.bench import histogram

Point = tuple[float, float]

_WIDTH, _HEIGHT = 640, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 34, 44
_COLOUR = {
    "none": "#777777", "self": "#bbbbbb", "programs": "#4caf50", "node": "#1565c0", "none-remote": "#9c8f5f",
    "node-remote": "#00acc1", "node-remote-mtls": "#7e57c2", "sidecar": "#ef6c00", "sidecar-mtls": "#c62828",
    "node-alone": "#1565c0", "node-flooded": "#c62828", "node-limited": "#4caf50",
    "sidecar-alone": "#777777", "sidecar-flooded": "#ef6c00",
}  # fmt: skip
"""The same arm has the same colour on every page."""

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
    plots = [
        _throughput(data, colours),
        _cpu(data, colours),
        *(_cdf(data, c) for c in data["arms"]["none"]),
        _memory(data, colours),
    ]
    return document(
        "One node proxy against sidecars", data, data["settings"]["arms"], plots, columns, rows,
        "Between nodes no hop is saved: each node's Envoy takes part, as two sidecars would.",
    )  # fmt: skip


def _colours(data: Mapping[str, Any]) -> dict[str, str]:
    return {arm: _COLOUR[arm] for arm in data["arms"]}


def document(
    title: str,
    data: Mapping[str, Any],
    words: Mapping[str, str],
    plots: Iterable[str],
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    remark: str = "",
) -> str:
    """One page: machine, method, bars, plots (SVG), table. `words` say what the arms are."""
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
        f"<p>{legend}</p><div class=plots>{''.join(plots)}</div>",
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


# --- plots ---------------------------------------------------------------------------------------------


def _svg(title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<text x="{_LEFT}" y="18" font-size="14">{escape(title)}</text>{"".join(parts)}</svg>'
    )


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _grid(
    x_ticks: Iterable[tuple[float, str]], y_ticks: Iterable[tuple[float, str]], x_name: str, y_name: str
) -> list[str]:
    """Ticks are (share of the axis, words)."""
    parts = [
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_name)}</text>",
        f'<text transform="translate(14 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_name)}</text>",
    ]
    for share, words in x_ticks:
        parts.append(
            f'<path d="M{_x(share):.1f} {_y(0)}V{_y(1)}" stroke="#eee"/>'
            f'<text x="{_x(share):.1f}" y="{_y(0) + 16}" text-anchor="middle">{escape(words)}</text>'
        )
    for share, words in y_ticks:
        parts.append(
            f'<path d="M{_LEFT} {_y(share):.1f}H{_WIDTH - _RIGHT}" stroke="#eee"/>'
            f'<text x="{_LEFT - 6}" y="{_y(share) + 4:.1f}" text-anchor="end">{escape(words)}</text>'
        )
    return parts


def _line(points: Iterable[Point], colour: str) -> str:
    path = "L".join(f"{_x(x):.1f} {_y(y):.1f}" for x, y in points)
    return f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>'


def _band(low: Sequence[Point], high: Sequence[Point], colour: str) -> str:
    path = "L".join(f"{_x(x):.1f} {_y(y):.1f}" for x, y in [*low, *reversed(high)])
    return f'<path d="M{path}Z" fill="{colour}" opacity=".13"/>'


def _round_steps(most: float) -> tuple[float, list[float]]:
    """The end of an axis from 0 that holds `most`, and its ticks."""
    unit = 10 ** math.floor(math.log10(most))
    step = next(s * unit for s in (0.2, 0.5, 1, 2) if most / (s * unit) <= 6)
    count = math.ceil(most / step)
    return count * step, [step * i for i in range(count + 1)]


def _throughput(data: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    loads = list(data["arms"]["none"])
    rates = {arm: {c: [run["rps"] for run in data["raw"][arm][c]] for c in loads} for arm in data["arms"]}
    rounds = [rate for arm in rates.values() for runs in arm.values() for rate in runs]
    bottom, top = math.floor(math.log10(min(rounds))), math.ceil(math.log10(max(rounds)))
    ticks = [m * 10**d for d in range(bottom, top) for m in (1, 2, 5)] + [10**top]
    low, high = math.log2(int(loads[0])), max(math.log2(int(loads[-1])), 1)
    place = {c: (math.log2(int(c)) - low) / (high - low) for c in loads}

    def share(rate: float) -> float:
        return (math.log10(rate) - bottom) / max(top - bottom, 1)

    parts = _grid(
        [(place[c], c) for c in loads],
        [(share(t), f"{t / 1000:g}k") for t in ticks],
        "connections",
        "requests/s",
    )
    for arm, found in rates.items():
        slowest, fastest = ([(place[c], share(pick(found[c]))) for c in loads] for pick in (min, max))
        parts.append(_band(slowest, fastest, colours[arm]))
        parts.append(_line(((place[c], share(data["arms"][arm][c]["rps"])) for c in loads), colours[arm]))
    return _svg("Throughput, lowest to highest round", parts)


def by_rate(data: Mapping[str, Any], share: str) -> str:
    """Latency of each arm against the rate that was asked for, both on logarithmic axes."""
    rates = sorted({int(rate) for by_rate in data["arms"].values() for rate in by_rate})
    values = [figures[share] for found in data["arms"].values() for figures in found.values()]
    left, right = math.log10(rates[0]), math.log10(rates[-1])
    bottom, top = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def at(rate: str, value: float) -> Point:
        return (
            (math.log10(int(rate)) - left) / max(right - left, 1e-9),
            (math.log10(value) - bottom) / max(top - bottom, 1),
        )

    parts = _grid(
        [(at(str(rate), 1.0)[0], f"{rate / 1000:g}k") for rate in rates],
        [((d - bottom) / max(top - bottom, 1), f"{10**d / 1000:g}") for d in range(bottom, top + 1)],
        "requests/s that are due",
        "ms",
    )
    for arm, found in data["arms"].items():
        parts.append(_line((at(rate, f[share]) for rate, f in found.items()), _COLOUR[arm]))
    name = share.removesuffix("_us").replace("p", "", 1)
    return _svg(f"Latency, {name}th percentile, until an arm cannot keep up", parts)


def _cdf(data: Mapping[str, Any], c: str) -> str:
    merged = {
        arm: histogram.merge(histogram.read_text(run["histogram_us"]) for run in data["raw"][arm][c])
        for arm in data["arms"]
    }
    return tails(f"Latency at {c} connection{'s' if c != '1' else ''}", merged)


def tails(title: str, merged: Mapping[str, Mapping[int, int]]) -> str:
    """Arm → histogram, drawn as the share that takes longer, down to 0.1 %, so that the tail is seen."""
    lowest = math.floor(math.log10(min(min(found) for found in merged.values()) or 1))
    highest = math.ceil(math.log10(max(histogram.percentile(found, 99.9) for found in merged.values())))
    decades, depth = max(highest - lowest, 1), 3
    marks = [m * 10**d for d in range(lowest, highest) for m in (1, 2, 5)] + [10**highest]
    parts = _grid(
        [
            ((math.log10(m) - lowest) / decades, f"{m / 1000:g}" if m >= 1000 else f".{m:03}"[:4])
            for m in marks
        ],
        [(1 - d / depth, f"{100 / 10**d:g} %") for d in range(depth + 1)],
        "ms",
        "requests that take longer",
    )
    for arm, found in merged.items():
        total, left, points = sum(found.values()), sum(found.values()), list[Point]()
        for value, count in sorted(found.items()):
            at = (math.log10(max(value, 1)) - lowest) / decades
            points.append((max(at, 0.0), 1 + math.log10(left / total) / depth))
            left -= count
            if left * 1000 < total:
                break
        parts.append(_line(points, _COLOUR[arm]))
    return _svg(title, parts)


def _columns(
    title: str, name: str, data: Mapping[str, Any], colours: Mapping[str, str],
    value: Callable[[str], tuple[float, float]],
) -> str:  # fmt: skip
    """A column for each arm; `value` gives its height, and the part of it that is drawn full."""
    found = {arm: value(arm) for arm in data["arms"]}
    end, ticks = _round_steps(max(height for height, _ in found.values()) or 1.0)
    parts = _grid([], [(t / end, f"{t:g}") for t in ticks], "", name)
    width = (_WIDTH - _LEFT - _RIGHT) / len(found)
    for number, (arm, (height, full)) in enumerate(found.items()):
        left = _LEFT + number * width + width * 0.12
        for top, opacity in ((height, 0.45), (full, 1)):
            y = _y(top / end)
            parts.append(
                f'<rect x="{left:.1f}" y="{y:.1f}" width="{width * 0.76:.1f}" height="{_y(0) - y:.1f}" '
                f'fill="{colours[arm]}" opacity="{opacity}"/>'
            )
        words = arm.replace("-remote", " far").replace("-mtls", " TLS").split(" ", 1)
        for line, text in enumerate(words):
            parts.append(
                f'<text x="{left + width * 0.38:.1f}" y="{_y(0) + 14 + 13 * line}" '
                f'text-anchor="middle" font-size="11">{escape(text)}</text>'
            )
    return _svg(title, parts)


def _cpu(data: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    c = list(data["arms"]["none"])[-1]

    def value(arm: str) -> tuple[float, float]:
        figures = data["arms"][arm][c]
        return figures["cpu_ms_per_1k"], min(figures["proxy_cpu_ms_per_1k"], figures["cpu_ms_per_1k"])

    return _columns(
        f"Processor time at {c} connections; full: in the proxies",
        "ms per 1000 requests",
        data,
        colours,
        value,
    )


def _memory(data: Mapping[str, Any], colours: Mapping[str, str]) -> str:
    c = list(data["arms"]["none"])[-1]
    return _columns(
        "Resident memory of the proxies on the way", "MB", data, colours,
        lambda arm: (data["arms"][arm][c]["rss_mb"],) * 2,
    )  # fmt: skip
