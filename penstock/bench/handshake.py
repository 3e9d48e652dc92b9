"""`penstock bench handshake`: what mutual TLS adds to a new connection between two nodes.

Arms take turns: a TCP connection for each answer in plain text (nothing but the kernel) and over mesh TLS
(two Envoys and a full handshake), and the same in HTTP behind an L7 rule, where Envoy keeps the connections
between the nodes and few handshakes are made. Envoy's own counter says how many.

Envoy takes no session resumption with certificates on demand (penstock/envoy/tls.py). What that costs is
measured by itself: processor time of a handshake of both sides with our certificates, full and resumed, in
one process (Python's OpenSSL, TLS 1.3, P-256).
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from penstock.bench.errors import BenchError
from penstock.bench.record import Bar, Result
from penstock.bench.site import (
    NODES,
    OTHER_NODE,
    DaemonUnderTest,
    Site,
    alone,
    daemon,
    policy,
    scratch,
    site,
    workload,
)
from penstock.bench.stats import median, turns
from penstock.bench.steady import HTTP_PORT, TCP_PORT
from penstock.envoy.admin import Admin
from penstock.envoy.bootstrap import admin_socket
from penstock.mtls import certificates
from penstock.mtls.ca import CertificateAuthority

ROUNDS, QUICK_ROUNDS = 7, 2
SECONDS, QUICK_SECONDS = 1.5, 0.5
THREADS = {"one": 1, "eight": 8}
HANDSHAKES, QUICK_HANDSHAKES = 300, 30
ARMS = {
    "plain": ("open", TCP_PORT, "tcp"),
    "mtls": ("strict", TCP_PORT, "tcp"),
    "plain-http": ("open", HTTP_PORT, "http"),
    "mtls-http": ("strict", HTTP_PORT, "http"),
}

Tell = Callable[[str], None]


def run(tell: Tell, *, quick: bool = False) -> Result:
    """Measure. Raises PenstockError."""
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    raw: dict[str, Any] = {arm: {load: [] for load in THREADS} for arm in ARMS}
    made = dict.fromkeys(ARMS, 0)
    with alone(), scratch() as directory, ExitStack() as stack:
        place = stack.enter_context(site("handshake", _workloads(), directory, nodes=2))
        running = [
            stack.enter_context(daemon(place, _policies(), node=node, ca_dir=directory / "handshake-ca"))
            for node in NODES
        ]
        for arm in ARMS:
            _dial(place, arm, 1, 0.3)
        for number, order in enumerate(turns(tuple(ARMS), rounds)):
            for arm in order:
                before = _handshakes(running[1])
                for load, threads in THREADS.items():
                    raw[arm][load].append(_dial(place, arm, threads, seconds))
                made[arm] += _handshakes(running[1]) - before
            tell(f"{number + 1}/{rounds} rounds")
    raw["crypto"] = _crypto(QUICK_HANDSHAKES if quick else HANDSHAKES)
    return _result(raw, made, rounds, seconds)


def _workloads() -> list[dict[str, Any]]:
    serve = [sys.executable, "-m", "penstock.bench.steady", "serve"]
    ports = [{"containerPort": HTTP_PORT}, {"containerPort": TCP_PORT}]
    servers = (
        workload(name, node=OTHER_NODE, run=[serve], ports=ports, serviceAccountName=name)
        for name in ("open", "strict")
    )
    return [workload("client", serviceAccountName="client"), *servers]


def _policies() -> list[dict[str, Any]]:
    modes = [
        {
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": name},
            "spec": {"selector": {"matchLabels": {"app": name}}, "mtls": {"mode": mode}},
        }
        for name, mode in (("open", "DISABLE"), ("strict", "STRICT"))
    ]
    l7 = {"ports": [{"port": str(HTTP_PORT)}], "rules": {"http": [{"path": "/.*"}]}}
    named = {"toEndpoints": [{"matchLabels": {"app": "strict"}}]}
    l4 = {"toEndpoints": [{}], "toPorts": [{"ports": [{"port": str(TCP_PORT)}]}]}
    free = {
        "toEndpoints": [{"matchLabels": {"app": "open"}}],
        "toPorts": [{"ports": [{"port": str(HTTP_PORT)}]}],
    }
    return [*modes, policy("client", "client", egress=[{**named, "toPorts": [l7]}, l4, free])]


def _dial(place: Site, arm: str, threads: int, seconds: float) -> dict[str, Any]:
    server, port, kind = ARMS[arm]
    argv = [sys.executable, "-m", "penstock.bench.dial", place.address(server), str(port), str(threads)]
    process = place.run_in("client", [*argv, str(seconds), kind], stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    found = dict(json.loads(out))
    if found["failed"] or not found["took_us"]:
        raise BenchError(f"{arm}: connections failed: {found['failed']}")
    return found


def _handshakes(receiver: DaemonUnderTest) -> int:
    stats: Mapping[str, int] = dict(asyncio.run(Admin(admin_socket(receiver.run_dir)).stats("listener.")))
    return sum(count for name, count in stats.items() if name.endswith("ssl.handshake"))


# --- what resumption would save ---


def _crypto(count: int) -> dict[str, list[float]]:
    """Processor time in µs of each handshake, both sides together."""
    with tempfile.TemporaryDirectory(prefix="penstock-handshake-") as folder:
        client, server = _contexts(Path(folder))
        session: ssl.SSLSession | None = None
        found: dict[str, list[float]] = {"full": [], "resumed": []}
        for _ in range(count):
            for kind in ("full", "resumed"):
                began = time.process_time()
                session, reused = _shake(client, server, session if kind == "resumed" else None)
                spent = 1e6 * (time.process_time() - began)
                if reused is not (kind == "resumed"):
                    raise BenchError(f"a handshake that was to be {kind} was not")
                found[kind].append(round(spent, 1))
    return found


def _contexts(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    ca = CertificateAuthority.open(folder / "ca", "bench.test")
    (folder / "root").write_bytes(ca.bundle_pem)
    contexts = []
    for name, protocol in (("client", ssl.PROTOCOL_TLS_CLIENT), ("server", ssl.PROTOCOL_TLS_SERVER)):
        key = certificates.new_key()
        spiffe_id = f"spiffe://bench.test/ns/default/sa/{name}"
        csr = certificates.signing_request(key)
        chain = ca.sign(csr, spiffe_id, timedelta(hours=1), owner=f"default/{name}")
        (folder / name).write_bytes(chain + certificates.key_pem(key))
        context = ssl.SSLContext(protocol)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(folder / name)
        context.load_verify_locations(folder / "root")
        contexts.append(context)
    return contexts[0], contexts[1]


def _shake(
    client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    """One handshake over memory, and a byte back: the ticket comes with it."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(back, there, server_side=False, session=session)
    other = server.wrap_bio(there, back, server_side=True)
    waiting = [one, other]
    while waiting:
        for side in tuple(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue
    other.write(b"x")
    one.read(1)
    return one.session, bool(one.session_reused)


# --- what comes out ---


def _result(raw: dict[str, Any], made: Mapping[str, int], rounds: int, seconds: float) -> Result:
    arms: dict[str, dict[str, Any]] = {}
    for arm in ARMS:
        answers = sum(len(sample["took_us"]) for samples in raw[arm].values() for sample in samples)
        arms[arm] = {
            "a_second": round(median([len(s["took_us"]) / s["seconds"] for s in raw[arm]["eight"]]), 1),
            "p50_us": round(median([median(s["took_us"]) for s in raw[arm]["one"]]), 1),
            "handshakes": made[arm],
            "handshakes_each": round(made[arm] / answers, 4),
        }
    crypto = {kind: round(median(samples), 1) for kind, samples in raw["crypto"].items()}
    arms["crypto"] = {f"{kind}_us": spent for kind, spent in crypto.items()}
    return Result(
        bench="handshake",
        method="a connection for each answer between two nodes, in turns: TCP in plain text and over mutual "
        "TLS, the same for HTTP behind an L7 rule; rate with eight at a time, latency with one; and the "
        "processor time of a handshake, full and resumed, by itself",
        settings={"rounds": rounds, "seconds": seconds},
        arms=arms,
        ratios={
            "rate, mtls": round(arms["mtls"]["a_second"] / arms["plain"]["a_second"], 3),
            "added us, mtls": round(arms["mtls"]["p50_us"] - arms["plain"]["p50_us"], 1),
            "added us, mtls-http": round(arms["mtls-http"]["p50_us"] - arms["plain-http"]["p50_us"], 1),
            "saved us, resumed": round(crypto["full"] - crypto["resumed"], 1),
        },
        bars=(
            Bar(
                "handshakes for an HTTP request of a new client connection",
                arms["mtls-http"]["handshakes_each"],
                0.5,
            ),
        ),
        raw=raw,
    )


COLUMNS = ("ARM", "NEW A SECOND", "P50 us", "HANDSHAKES EACH")


def rows(data: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: the arms, then what a handshake costs by itself."""
    found: list[tuple[Any, ...]] = [
        (
            arm,
            data["arms"][arm]["a_second"],
            data["arms"][arm]["p50_us"],
            data["arms"][arm]["handshakes_each"],
        )
        for arm in ARMS
    ]
    crypto = data["arms"]["crypto"]
    return [
        *found,
        ("full handshake, CPU", "", crypto["full_us"], ""),
        ("resumed, CPU", "", crypto["resumed_us"], ""),
    ]
