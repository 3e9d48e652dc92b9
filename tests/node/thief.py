"""Certificates in the wrong hands, and handshakes that no honest Envoy would make."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from pathlib import Path

from clients import make_socket
from cryptography import x509
from rig import Mesh

from penstock.mtls import certificates
from penstock.mtls.ca import opened

_ports = count(26000)
_IP_TRANSPARENT, _UPSTREAM = 19, 0xB00


@dataclass(frozen=True)
class Stolen:
    """A chain with its key, in files, as Python's TLS wants them."""

    chain: Path
    key: Path
    serial: str

    @classmethod
    def put(cls, folder: Path, chain: bytes, key: bytes) -> Stolen:
        (folder / "stolen.crt").write_bytes(chain)
        (folder / "stolen.key").write_bytes(key)
        serial = x509.load_pem_x509_certificates(chain)[0].serial_number
        return cls(folder / "stolen.crt", folder / "stolen.key", f"{serial:x}")

    @classmethod
    def of(cls, mesh: Mesh, folder: Path, account: str) -> Stolen:
        """A good one, by the mesh's own CA."""
        key = certificates.new_key()
        spiffe_id = f"spiffe://penstock.local/ns/default/sa/{account}"
        chain = opened(mesh.base / "ca").sign(
            certificates.signing_request(key), spiffe_id, timedelta(hours=1), owner=f"default/{account}"
        )
        return cls.put(folder, chain, certificates.key_pem(key))


def dial(mesh: Mesh, client: str, server: str, port: int, *, where: str = "") -> socket.socket:
    """TCP from `client`'s address to the mesh TLS port of `server`, past the client's own proxy.

    That is what whoever owns a node can do (the client's, or `where`): like the proxy it takes the address, a
    port of the range that tells mesh TLS, and a mark.
    """
    address = mesh[server].address()
    sock = make_socket(mesh.spec.node(where or mesh[client].node).netns)
    try:
        sock.settimeout(3)
        sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, _UPSTREAM)
        sock.bind((str(mesh[client].address()), next(_ports)))
        sock.connect((str(address), port))
    except BaseException:
        sock.close()
        raise
    return sock


@dataclass(frozen=True)
class Spoken:
    """What came back through TLS, and what openssl said about the handshake."""

    answer: bytes
    said: str

    @property
    def served(self) -> bool:
        return self.answer.startswith(b"HTTP/1.1 ")


def speak(
    mesh: Mesh,
    client: str,
    server: str,
    shown: Stolen | None,
    *options: str,
    port: int = 8080,
    name: str = "",
    request: bytes = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
) -> Spoken:
    """One request over TLS as `dial` connects, by openssl's own client (Python's sends no address as SNI)."""
    with tempfile.TemporaryDirectory() as folder, dial(mesh, client, server, port) as sock:
        path = f"{folder}/relay"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()
            command = [
                "openssl",
                "s_client",
                "-unix",
                path,
                "-servername",
                name or str(mesh[server].address()),
            ]
            if shown is not None:
                command += [
                    "-cert",
                    str(shown.chain),
                    "-cert_chain",
                    str(shown.chain),
                    "-key",
                    str(shown.key),
                ]
            process = subprocess.Popen(
                [*command, "-quiet", "-verify_quiet", *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            inner, _ = listener.accept()
        with inner:
            there = threading.Thread(target=_copy, args=(inner, sock))
            back = threading.Thread(target=_copy, args=(sock, inner))
            there.start()
            back.start()
            try:
                out, err = process.communicate(request, timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                out, err = process.communicate()
            there.join()
            back.join()
    return Spoken(out, err.decode(errors="replace"))


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for each in (source, sink):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
