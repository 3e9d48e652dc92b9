"""Servers and load generators of the benchmarks: nginx, wrk and iperf3, each on a CPU of its own choice.

Both arms of a comparison use the same commands on the same CPUs; so what differs is the way between.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from penstock.bench import histogram
from penstock.bench.errors import BenchError, ToolMissingError
from penstock.bench.site import Site

HTTP_PORT = 8080
HTTP2_PORT = 8081
"""HTTP/2 without TLS, by prior knowledge."""
GRPC_PATH = "/bench.Echo/Say"
"""On HTTP2_PORT: answers in gRPC's types, with its status in a trailer."""
STREAM_PORT = 5201
BUSY = 20
"""How often iperf3 is tried while its server still has the one before."""
BODY = "x" * 1024

_NGINX = """\
daemon off; master_process off; worker_processes 1; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s; tcp_nodelay on;
  client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir};
  scgi_temp_path {dir};
  server {{
    listen {port} backlog=4096 reuseport; listen [::]:{port} backlog=4096 reuseport;
    default_type text/plain;
    location / {{ return 200 "{body}"; }}
  }}
  server {{
    listen {http2} backlog=4096 reuseport http2; listen [::]:{http2} backlog=4096 reuseport http2;
    default_type text/plain; http2_max_concurrent_streams 1024;
    location / {{ return 200 "{body}"; }}
    location {grpc} {{ default_type application/grpc; add_trailer grpc-status 0; return 200 "{body}"; }}
  }}
}}
"""


def need(*tools: str) -> None:
    """Raises ToolMissingError if one is not installed."""
    for tool in tools:
        if not find(tool):
            package = {
                "nginx": "nginx-light",
                "iptables-restore": "iptables",
                "h2load": "nghttp2-client",
            }.get(tool, tool)
            raise ToolMissingError(f"{tool} is not installed", hint=f"apt-get install {package}")


def find(tool: str) -> str | None:
    """Where a tool is; servers are often in a directory that is not searched."""
    return shutil.which(tool, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def server_cpu() -> int:
    return max(os.sched_getaffinity(0))


def load_cpu() -> int:
    return min(os.sched_getaffinity(0))


def nginx(directory: Path, name: str) -> list[str]:
    """The command of a server that answers 1 KB on both ports, from memory, in one process."""
    home = directory / f"nginx-{name}"
    home.mkdir(mode=0o777)
    config = home / "nginx.conf"
    config.write_text(_NGINX.format(dir=home, port=HTTP_PORT, http2=HTTP2_PORT, grpc=GRPC_PATH, body=BODY))
    return [
        "taskset",
        "-c",
        str(server_cpu()),
        find("nginx") or "nginx",
        "-c",
        str(config),
        "-e",
        f"{home}/error.log",
    ]


def iperf3_server() -> list[str]:
    return ["taskset", "-c", str(server_cpu()), "iperf3", "-s", "-p", str(STREAM_PORT)]


@dataclass(frozen=True, slots=True)
class HttpLoad:
    """What wrk saw: requests per second, latency in µs; `errors` failed or had a code other than 2xx."""

    rps: float
    p50_us: float
    p90_us: float
    p99_us: float
    errors: int

    def data(self) -> dict[str, Any]:
        return asdict(self)


def wrk_whole(
    site: Site, client: str, server: str, *, connections: int, seconds: int, headers: Sequence[str] = ()
) -> histogram.Run:
    """As `wrk`, with the whole distribution."""
    script = site.directory / "done.lua"
    script.write_text(histogram.SCRIPT)
    url = f"http://{site.address(server)}:{HTTP_PORT}/"
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(script)]
    argv += [each for header in headers for each in ("-H", header)]
    argv.append(url)
    return histogram.read(output(site, client, argv, seconds))


def wrk(
    site: Site,
    client: str,
    server: str,
    *,
    connections: int,
    seconds: float,
    at: str = "",
    anew: bool = False,
) -> HttpLoad:
    """Closed loop over kept-alive connections, or over a new one for each request (`anew`).

    `at` is the address and port to ask instead of the server's own.
    """
    url = f"http://{at or f'{site.address(server)}:{HTTP_PORT}'}/"
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{max(round(seconds), 1)}s", "--latency"]
    argv += [*(["-H", "Connection: close"] if anew else []), url]
    return read_wrk(output(site, client, argv, seconds))


def read_wrk(text: str) -> HttpLoad:
    """What wrk --latency prints. Raises BenchError if it is something else."""
    rate = re.search(r"^Requests/sec:\s*([\d.]+)", text, re.MULTILINE)
    shares = {
        share: _microseconds(v) for share, v in re.findall(r"^\s+(\d+)%\s+([\d.]+\w+)", text, re.MULTILINE)
    }
    if rate is None or not {"50", "90", "99"} <= set(shares):
        raise BenchError(f"wrk said something else: {text[-500:]}")
    socket_errors = re.search(r"^\s*Socket errors: (.*)$", text, re.MULTILINE)
    other = re.search(r"^\s*Non-2xx or 3xx responses: (\d+)", text, re.MULTILINE)
    errors = sum(map(int, re.findall(r"\d+", socket_errors[1]))) if socket_errors else 0
    return HttpLoad(
        float(rate[1]), shares["50"], shares["90"], shares["99"], errors + (int(other[1]) if other else 0)
    )


def _microseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\w+)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 1, "ms": 1e3, "s": 1e6, "m": 6e7}[unit]


def iperf3(site: Site, client: str, server: str, *, seconds: float) -> float:
    """Throughput of one TCP stream in Gbit/s."""
    argv = [
        "iperf3",
        "-c",
        site.address(server),
        "-p",
        str(STREAM_PORT),
        "-t",
        str(max(round(seconds), 1)),
        "-J",
    ]
    text = ""
    for _ in range(BUSY):
        text = output(site, client, argv, seconds)
        if "server is busy" not in text:
            break
        # It serves one at a time, and may still be writing down the one before: nothing tells when it has.
        time.sleep(0.25)
    try:
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 1e9
    except (ValueError, KeyError) as e:
        raise BenchError(f"iperf3 said something else: {text[-500:]}") from e


def output(site: Site, client: str, argv: list[str], seconds: float) -> str:
    """What the load generator says, run on the CPU that is left to it."""
    pinned = ["taskset", "-c", str(load_cpu()), *argv]
    process = site.run_in(client, pinned, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        text, _ = process.communicate(timeout=seconds + 30)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        raise BenchError(f"{argv[0]} ended with {process.returncode}: {text.strip()[-500:]}")
    return str(text)
