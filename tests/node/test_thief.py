"""Certificates in the wrong hands and addresses in the wrong place: each is refused, counted and named."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from clients import ask, served, until
from conftest import MeshFactory
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from objects import peer_authentication, policy, ports, select
from rig import Mesh, workload
from thief import Stolen, dial, speak

from penstock.mtls import certificates, keys
from penstock.mtls.ca import CertificateAuthority, opened

CLIENT = "spiffe://penstock.local/ns/default/sa/client"
STRICT = peer_authentication("far", "STRICT", app="far")
ONLY_CLIENT = policy(
    "far",
    select(app="far"),
    ingress=[
        {
            "fromEndpoints": [select(app="client")],
            "toPorts": [ports(8080, http=[{"path": "/.*"}]), ports(9090)],
        },
        {"fromEndpoints": [select(app="other")], "toPorts": [ports(8080, http=[{"path": "/public"}])]},
    ],
)


@pytest.fixture(scope="module")
def mesh(make_mesh: MeshFactory) -> Mesh:
    found = make_mesh(
        workload("client", "node-a"),
        workload("other", "node-a"),
        workload("far", "node-b", serves=True),
        workload("near", "node-b", serves=True),
    )
    found.apply(STRICT, ONLY_CLIENT)
    until("far serves", lambda: ask(found["client"], found["far"].address(), 8080).status == 200)
    return found


@pytest.fixture
def told(mesh: Mesh) -> Iterator[dict[str, str]]:
    """The test says which reason must be counted and named at the receiving node, from which client."""
    wanted: dict[str, str] = {}
    daemon = mesh.on("far")
    before = {key: n["packets"] for key, n in daemon.status()["counters"].items()}
    began = time.time()
    yield wanted
    reason = wanted["reason"]
    until("it is counted", lambda: daemon.counter(reason) > before.get(reason, 0))

    def named() -> list[dict[str, Any]]:
        return [r for r in daemon.observed() if r["time"] > began and r.get("reason") == reason]

    record = until("it is named", named)[-1]
    assert (
        f'penstock_packets_total{{reason="{reason}"}} {daemon.counter(reason)}'
        in daemon.call("metrics")["text"]
    )
    if record["type"] == "request":
        assert record["source"]["name"] == f"default/{wanted.get('client', 'client')}"
        assert record["destination"]["name"] == "default/far"
        assert record["verdict"] == "DENIED"


def made(
    folder: Path,
    ca: CertificateAuthority,
    spiffe_id: str = CLIENT,
    *,
    start: timedelta = timedelta(minutes=-5),
    end: timedelta = timedelta(hours=1),
    usages: tuple[Any, ...] = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH),
) -> Stolen:
    """What the CA itself would never sign, signed with its own key."""
    issuer = x509.load_pem_x509_certificates((ca.directory / "intermediate.crt").read_bytes())[0]
    issuer_key = keys.read(ca.directory / "intermediate.key")
    key, now = certificates.new_key(), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + start)
        .not_valid_after(now + end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(certificates.key_usage(sign=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id)]), critical=True
        )
    )
    leaf = builder.sign(issuer_key, keys.signing_hash(issuer_key))
    chain = certificates.certificate_pem(leaf) + certificates.certificate_pem(issuer)
    return Stolen.put(folder, chain, certificates.key_pem(key))


def test_the_owner_itself_is_let_in(mesh: Mesh, tmp_path: Path) -> None:
    """So that the others below are refused for what they are."""
    assert speak(mesh, "client", "far", made(tmp_path, opened(mesh.base / "ca"))).served


def test_a_stolen_certificate_from_another_address(mesh: Mesh, tmp_path: Path, told: dict[str, str]) -> None:
    """Also that of another workload on the same node, which is the nearest thief there is."""
    assert not speak(mesh, "other", "far", Stolen.of(mesh, tmp_path, "client")).served
    told.update(reason="IDENTITY_MISMATCH", client="other")


def test_an_address_spoofed_with_a_certificate_of_ones_own(
    mesh: Mesh, tmp_path: Path, told: dict[str, str]
) -> None:
    assert not speak(mesh, "client", "far", Stolen.of(mesh, tmp_path, "other")).served
    told.update(reason="IDENTITY_MISMATCH")


def test_a_certificate_that_is_over(mesh: Mesh, tmp_path: Path, told: dict[str, str]) -> None:
    shown = made(tmp_path, opened(mesh.base / "ca"), start=timedelta(hours=-2), end=timedelta(minutes=-1))
    assert not speak(mesh, "client", "far", shown).served
    told.update(reason="CERTIFICATE_REFUSED")


def test_a_certificate_that_is_not_valid_yet(mesh: Mesh, tmp_path: Path, told: dict[str, str]) -> None:
    shown = made(tmp_path, opened(mesh.base / "ca"), start=timedelta(minutes=30))
    assert not speak(mesh, "client", "far", shown).served
    told.update(reason="CERTIFICATE_REFUSED")


def test_a_certificate_of_another_trust_domain(mesh: Mesh, tmp_path: Path, told: dict[str, str]) -> None:
    shown = made(tmp_path, opened(mesh.base / "ca"), CLIENT.replace("penstock.local", "evil.example"))
    assert not speak(mesh, "client", "far", shown).served
    told.update(reason="CERTIFICATE_REFUSED")


def test_a_certificate_for_servers_only(mesh: Mesh, tmp_path: Path, told: dict[str, str]) -> None:
    shown = made(tmp_path, opened(mesh.base / "ca"), usages=(ExtendedKeyUsageOID.SERVER_AUTH,))
    assert not speak(mesh, "client", "far", shown).served
    told.update(reason="CERTIFICATE_REFUSED")


def test_a_certificate_of_another_ca_with_the_same_names(
    mesh: Mesh, tmp_path: Path, told: dict[str, str]
) -> None:
    forger = CertificateAuthority.open(tmp_path / "forged", "penstock.local")
    assert not speak(mesh, "client", "far", made(tmp_path, forger)).served
    told.update(reason="CERTIFICATE_REFUSED")


def test_a_self_signed_certificate(mesh: Mesh, tmp_path: Path, told: dict[str, str]) -> None:
    key, now = certificates.new_key(), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client")])
    builder = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(CLIENT)]), critical=True)
    )  # fmt: skip
    chain = certificates.certificate_pem(builder.sign(key, hashes.SHA256()))
    assert not speak(mesh, "client", "far", Stolen.put(tmp_path, chain, certificates.key_pem(key))).served
    told.update(reason="CERTIFICATE_REFUSED")


def test_no_certificate_at_all(mesh: Mesh, told: dict[str, str]) -> None:
    assert not speak(mesh, "client", "far", None).served
    told.update(reason="HANDSHAKE_REFUSED")


@pytest.mark.parametrize("version", ["-tls1_1", "-tls1_2"])
def test_an_older_version_of_tls(mesh: Mesh, tmp_path: Path, told: dict[str, str], version: str) -> None:
    shown = Stolen.of(mesh, tmp_path, "client")
    old = speak(mesh, "client", "far", shown, version, "-cipher", "DEFAULT:@SECLEVEL=0")
    assert not old.served
    told.update(reason="HANDSHAKE_REFUSED")


def test_a_downgrade_to_plain_text_on_the_ports_of_mesh_tls(mesh: Mesh, told: dict[str, str]) -> None:
    with dial(mesh, "client", "far", 8080) as sock:
        assert served(sock) == b""
    told.update(reason="HANDSHAKE_REFUSED")


def test_a_downgrade_to_plain_text_past_them(mesh: Mesh, told: dict[str, str]) -> None:
    with pytest.raises(TimeoutError):
        dial(mesh, "client", "far", 8080, source_port=40404)
    told.update(reason="PLAINTEXT_TO_STRICT")


def test_the_name_of_another_workload(mesh: Mesh, tmp_path: Path, told: dict[str, str]) -> None:
    """The server's certificate is chosen by the name; it must be that of the connection's destination."""
    shown = Stolen.of(mesh, tmp_path, "client")
    assert not speak(mesh, "client", "far", shown, name=str(mesh["near"].address())).served
    told.update(reason="IDENTITY_MISMATCH")
