"""Kinds of load beyond wrk's kept-alive one: HTTP/2, gRPC, a connection for each request, and a fixed rate.

The first three are closed loops: a client sends its next request when it has its answer. A fixed rate is an
open loop: requests are due whether or not earlier ones were answered, and latency counts from when a request
was due, so that a stall is paid for by all whom it held up.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from penstock.bench import histogram
from penstock.bench.errors import BenchError
from penstock.bench.serving import GRPC_PATH, HTTP2_PORT, HTTP_PORT, output, wrk_whole
from penstock.bench.site import Site

Load = Callable[[Site, str, str, int, int], histogram.Run]
"""(site, client, server, connections, seconds) → what the load generator saw. Raises BenchError."""

_CALL = b"\0\0\0\0\x04ping"
"""A gRPC message: not compressed, 4 bytes long (the protocol's Length-Prefixed-Message)."""


def keep_alive(site: Site, client: str, server: str, connections: int, seconds: int) -> histogram.Run:
    """HTTP/1.1 over connections that stay."""
    return wrk_whole(site, client, server, connections=connections, seconds=seconds)


def connect_each(site: Site, client: str, server: str, connections: int, seconds: int) -> histogram.Run:
    """HTTP/1.1 with a connection for each request; latency is from the request on, rates tell the rest."""
    return wrk_whole(
        site, client, server, connections=connections, seconds=seconds, headers=("Connection: close",)
    )


def http2(site: Site, client: str, server: str, connections: int, seconds: int) -> histogram.Run:
    """HTTP/2 without TLS, one request at a time on each connection."""
    options = ["-m1", f"-c{connections}", f"-D{seconds}"]
    return _h2load(site, client, _url(site, server, HTTP2_PORT), options, seconds)


def grpc(site: Site, client: str, server: str, connections: int, seconds: int) -> histogram.Run:
    """Unary gRPC calls, one at a time on each connection."""
    body = site.directory / "call.bin"
    body.write_bytes(_CALL)
    options = ["-m1", f"-c{connections}", f"-D{seconds}", f"-d{body}"]
    options += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    return _h2load(site, client, _url(site, server, HTTP2_PORT, GRPC_PATH), options, seconds)


def at_rate(rate: int, site: Site, client: str, server: str, connections: int, seconds: int) -> histogram.Run:
    """HTTP/1.1 over connections that stay, `rate` requests a second, latency from when each was due."""
    options = ["--h1", "-m1", f"-c{connections}", f"-D{seconds}", f"--rps={rate / connections:g}"]
    return _h2load(
        site, client, _url(site, server, HTTP_PORT), options, seconds, due=(rate / 1e6, connections)
    )


KINDS: dict[str, Load] = {
    "keep-alive": keep_alive,
    "no keep-alive": connect_each,
    "HTTP/2": http2,
    "gRPC": grpc,
}


def _url(site: Site, server: str, port: int, path: str = "/") -> str:
    return f"http://{site.address(server)}:{port}{path}"


def _h2load(
    site: Site,
    client: str,
    url: str,
    options: Sequence[str],
    seconds: int,
    due: tuple[float, int] | None = None,
) -> histogram.Run:
    log = site.directory / "requests.log"
    log.unlink(missing_ok=True)
    text = output(site, client, ["h2load", *options, f"--log-file={log}", url], seconds)
    rows = [tuple(map(int, line.split("\t"))) for line in log.read_text().splitlines()]
    return read(text, [(row[0], row[1], row[2]) for row in rows], seconds, due)


def read(
    text: str,
    rows: Iterable[tuple[int, int, int]],
    seconds: float,
    due: tuple[float, int] | None = None,
) -> histogram.Run:
    """What h2load prints and logs: (start in us, status, us to the end of the answer) for each request.

    With `due`, (requests a microsecond, connections), the wait before a request was sent counts: all
    connections begin together, so requests are due in groups of one for each. Raises BenchError if it is
    something else, or if hardly anything was answered.
    """
    found = re.search(
        r"^requests: (\d+) total.* (\d+) failed, (\d+) errored, (\d+) timeout", text, re.MULTILINE
    )
    ordered = sorted(rows)
    if found is None or not ordered:
        raise BenchError(f"h2load said something else: {text[-500:]}")
    counts: Counter[int] = Counter()
    first = ordered[0][0]
    bad = 0
    for number, (start, status, took) in enumerate(ordered):
        late = 0.0
        if due is not None:
            rate, group = due
            late = max(start - first - number // group * group / rate, 0.0)
        if status // 100 == 2:
            counts[histogram.rounded(round(took + late))] += 1
        else:
            bad += 1
    errors = bad + sum(map(int, found.groups()[1:3]))
    return histogram.Run(seconds, sum(counts.values()), errors, dict(sorted(counts.items())))


def saturation(rates: Sequence[int], reached: Sequence[float], share: float = 0.95) -> int:
    """The highest of `rates` of which at least `share` was reached; 0 if none was."""
    return max((rate for rate, got in zip(rates, reached, strict=True) if got >= share * rate), default=0)
