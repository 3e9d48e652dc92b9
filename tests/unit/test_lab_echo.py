"""What the echo backend answers over each protocol that it speaks."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import aiohttp
import grpc
import pytest

KINDS = ("http", "https", "tcp", "tls", "udp", "grpc")
WHO = {"namespace": "shop", "service": "api", "pod": "api-1"}


def _free(kind: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    found = {kind: _free(kind) for kind in KINDS}
    command = [sys.executable, "-m", "penstock.cli", "lab", "echo", "--hostname", "a.example"]
    command += ["--name", "api-1", "--namespace", "shop", "--service", "api"]
    for kind, port in found.items():
        command += [f"--{kind}", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield found
        process.terminate()
        assert process.wait(10) == 0


def curl(*options: str) -> dict[str, Any]:
    done = subprocess.run(["curl", "-sk", "-m", "5", *options], capture_output=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(
    ("option", "proto"), [("--http1.1", "HTTP/1.1"), ("--http2-prior-knowledge", "HTTP/2.0")]
)
def test_http(ports: dict[str, int], option: str, proto: str) -> None:
    found = curl(option, "-XPUT", "-d", "body", "-H", "x-a: 1", f"http://127.0.0.1:{ports['http']}/p?q=1")
    assert {k: found[k] for k in WHO} == WHO
    assert (found["method"], found["path"], found["proto"]) == ("PUT", "/p?q=1", proto)
    assert (found["host"], found["headers"]["X-A"]) == (f"127.0.0.1:{ports['http']}", ["1"])
    assert found["tls"] is None


@pytest.mark.parametrize(("option", "alpn"), [("--http1.1", "http/1.1"), ("--http2", "h2")])
def test_https(ports: dict[str, int], option: str, alpn: str) -> None:
    where = f"a.example:{ports['https']}"
    found = curl(option, "--resolve", f"{where}:127.0.0.1", f"https://{where}/")["tls"]
    assert (found["serverName"], found["negotiatedProtocol"], found["peerCertificates"]) == (
        "a.example",
        alpn,
        [],
    )


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_grpc(ports: dict[str, int], kind: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{ports[kind]}") as channel:
        found = json.loads(channel.unary_unary("/a.B/C")(b"", timeout=5))
    assert (found["path"], found["pod"]) == ("/a.B/C", "api-1")


async def test_websocket(ports: dict[str, int]) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.ws_connect(f"http://127.0.0.1:{ports['http']}/w") as sock,
    ):
        assert (await sock.receive_json())["pod"] == "api-1"
        await sock.send_str("hello")
        assert await sock.receive_str() == "hello"


@pytest.mark.parametrize("kind", ["tcp", "tls", "udp"])
def test_bytes_come_back_and_who_is_asked(ports: dict[str, int], kind: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        sock.connect(("127.0.0.1", ports[kind]))
        if kind == "tls":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            with context.wrap_socket(sock, server_hostname="a.example") as wrapped:
                _speak(wrapped)
        else:
            _speak(sock)


def _speak(sock: socket.socket) -> None:
    sock.send(b"xyz")
    assert sock.recv(99) == b"xyz"
    sock.send(b"who?")
    assert json.loads(sock.recv(999)) == WHO
