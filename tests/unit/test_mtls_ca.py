"""The CA against openssl's command line, and its directory against crashes and company."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from penstock.mtls import certificates
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import AuthorityError, RequestError, SpiffeIdError

DOMAIN = "mesh.test"
WEB = f"spiffe://{DOMAIN}/ns/default/sa/web"
DAY = timedelta(days=1)
NOW = 1_800_000_000.0


def fresh(directory: Path, now: float = NOW) -> CertificateAuthority:
    return CertificateAuthority.open(directory, DOMAIN, clock=lambda: now)


def request() -> bytes:
    return certificates.signing_request(certificates.new_key())


def openssl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)


def verify_with_openssl(
    folder: Path, bundle: bytes, chain: bytes, purpose: str, at: float
) -> subprocess.CompletedProcess[str]:
    leaf, *others = x509.load_pem_x509_certificates(chain)
    (folder / "root.pem").write_bytes(bundle)
    (folder / "leaf.pem").write_bytes(certificates.certificate_pem(leaf))
    (folder / "others.pem").write_bytes(b"".join(map(certificates.certificate_pem, others)))
    return openssl(
        "verify", "-x509_strict", "-attime", str(int(at)), "-purpose", purpose,
        "-CAfile", folder / "root.pem", "-untrusted", folder / "others.pem", folder / "leaf.pem",
    )  # fmt: skip


@pytest.mark.parametrize("purpose", ["sslclient", "sslserver"])
def test_openssl_takes_the_chain_for_both_sides(tmp_path: Path, purpose: str) -> None:
    ca = fresh(tmp_path / "ca")
    done = verify_with_openssl(
        tmp_path, ca.bundle_pem, ca.sign(request(), WEB, DAY, owner="default/web"), purpose, NOW
    )
    assert done.returncode == 0, done.stderr


def test_openssl_refuses_it_after_its_end_and_under_another_root(tmp_path: Path) -> None:
    ca, other = fresh(tmp_path / "ca"), fresh(tmp_path / "other")
    chain = ca.sign(request(), WEB, DAY, owner="default/web")
    late = verify_with_openssl(tmp_path, ca.bundle_pem, chain, "sslclient", NOW + 86401)
    foreign = verify_with_openssl(tmp_path, other.bundle_pem, chain, "sslclient", NOW)
    assert "expired" in late.stderr
    assert foreign.returncode != 0


def test_the_intermediate_cannot_sign_for_another_trust_domain(tmp_path: Path) -> None:
    ca = fresh(tmp_path / "ca")
    key = serialization.load_pem_private_key((tmp_path / "ca/intermediate.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    forged = certificates.leaf(
        certificates.new_key().public_key(),
        "spiffe://other.test/ns/default/sa/web",
        ca.intermediate,
        key,
        now=datetime.fromtimestamp(NOW, UTC),
        lifetime=DAY,
    )
    chain = certificates.certificate_pem(forged) + certificates.certificate_pem(ca.intermediate)
    done = verify_with_openssl(tmp_path, ca.bundle_pem, chain, "sslclient", NOW)
    assert "permitted subtree violation" in done.stderr


def test_the_leaf_says_what_the_ca_decides_whatever_the_request_says(tmp_path: Path) -> None:
    key = certificates.new_key()
    greedy = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")]))
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("admin.test"),
                    x509.UniformResourceIdentifier(f"spiffe://{DOMAIN}/ns/a/sa/admin"),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    chain = fresh(tmp_path).sign(greedy, WEB, DAY, owner="default/web")
    leaf = x509.load_pem_x509_certificates(chain)[0]
    san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(san.value) == [x509.UniformResourceIdentifier(WEB)]
    assert san.critical
    assert leaf.subject == x509.Name([])
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.public_key() == key.public_key()
    assert leaf.not_valid_before_utc == datetime.fromtimestamp(NOW - 300, UTC)
    assert leaf.not_valid_after_utc == datetime.fromtimestamp(NOW + 86400, UTC)


def test_a_request_that_its_key_did_not_sign_is_refused(tmp_path: Path) -> None:
    der = bytearray(x509.load_pem_x509_csr(request()).public_bytes(serialization.Encoding.DER))
    other = x509.load_pem_x509_csr(request()).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    own = x509.load_der_x509_csr(bytes(der)).public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )  # fmt: skip
    swapped = x509.load_der_x509_csr(bytes(der).replace(own, other))
    with pytest.raises(RequestError, match="not signed by the key"):
        fresh(tmp_path).sign(swapped.public_bytes(serialization.Encoding.PEM), WEB, DAY, owner="default/web")


def test_other_keys_ids_and_lifetimes_are_refused(tmp_path: Path) -> None:
    ca = fresh(tmp_path)
    rsa_request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(rsa.generate_private_key(65537, 2048), hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    with pytest.raises(RequestError, match="P-256"):
        ca.sign(rsa_request, WEB, DAY, owner="default/web")
    with pytest.raises(RequestError, match="not a signing request"):
        ca.sign(b"nonsense", WEB, DAY, owner="default/web")
    with pytest.raises(RequestError, match="trust domain"):
        ca.sign(request(), "spiffe://other.test/ns/default/sa/web", DAY, owner="default/web")
    with pytest.raises(RequestError, match="needs a path"):
        ca.sign(request(), f"spiffe://{DOMAIN}", DAY, owner="default/web")
    with pytest.raises(SpiffeIdError):
        ca.sign(request(), f"spiffe://{DOMAIN}/ns//sa/web", DAY, owner="default/web")
    with pytest.raises(RequestError, match="positive"):
        ca.sign(request(), WEB, timedelta(0), owner="default/web")


def test_the_keys_are_the_owners_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        fresh(tmp_path / "ca")
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "ca").iterdir()}
    assert modes == {
        "root.key": 0o600,
        "root.crt": 0o644,
        "intermediate.key": 0o600,
        "intermediate.crt": 0o644,
        ".lock": 0o600,
        "jwt": 0o700,
        "jwt.json": 0o644,
    }
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_opening_again_changes_nothing(tmp_path: Path) -> None:
    fresh(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    fresh(tmp_path, NOW + 86400 * 20)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_another_trust_domain_is_told_clearly(tmp_path: Path) -> None:
    fresh(tmp_path)
    with pytest.raises(AuthorityError, match=r"is of trust domain mesh\.test, not other\.test") as caught:
        CertificateAuthority.open(tmp_path, "other.test")
    assert "--ca-dir" in caught.value.hint


OPEN_AND_PRINT = """
import sys, pathlib
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls import certificates
print("ready", flush=True)
sys.stdin.readline()
ca = CertificateAuthority.open(pathlib.Path(sys.argv[1]), "mesh.test")
sys.stdout.buffer.write(ca.bundle_pem + certificates.certificate_pem(ca.intermediate))
"""


def test_processes_that_start_together_share_one_ca(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN_AND_PRINT, str(tmp_path / "ca")]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write(b"\n")
        racer.stdin.flush()
    outputs = [racer.communicate(timeout=30) for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, outputs
    assert len({output for output, _ in outputs}) == 1
    assert len(x509.load_pem_x509_certificates(outputs[0][0])) == 2


@pytest.mark.parametrize("lost", ["intermediate.crt", "intermediate.key"])
def test_a_crash_while_the_intermediate_is_written_is_mended_from_the_root(tmp_path: Path, lost: str) -> None:
    bundle = fresh(tmp_path / "ca").bundle_pem
    (tmp_path / "ca" / lost).unlink()
    ca = fresh(tmp_path / "ca")
    assert ca.bundle_pem == bundle
    done = verify_with_openssl(
        tmp_path, bundle, ca.sign(request(), WEB, DAY, owner="default/web"), "sslclient", NOW
    )
    assert done.returncode == 0, done.stderr


def test_a_key_that_does_not_match_its_intermediate_is_replaced_with_it(tmp_path: Path) -> None:
    old = fresh(tmp_path / "ca").intermediate
    (tmp_path / "ca/intermediate.key").write_bytes(certificates.key_pem(certificates.new_key()))
    ca = fresh(tmp_path / "ca")
    assert ca.intermediate != old
    done = verify_with_openssl(
        tmp_path, ca.bundle_pem, ca.sign(request(), WEB, DAY, owner="default/web"), "sslclient", NOW
    )
    assert done.returncode == 0, done.stderr


def test_a_crash_before_the_root_is_complete_starts_anew(tmp_path: Path) -> None:
    (tmp_path / "root.key").write_bytes(certificates.key_pem(certificates.new_key()))
    assert fresh(tmp_path).sign(request(), WEB, DAY, owner="default/web")


@pytest.mark.parametrize("name", ["root.crt", "root.key", "intermediate.crt"])
def test_a_damaged_ca_is_refused_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    fresh(tmp_path)
    (tmp_path / name).write_bytes(b"damaged")
    if name == "root.key":
        (tmp_path / "intermediate.crt").unlink()
    with pytest.raises(AuthorityError, match=name):
        fresh(tmp_path)
    assert (tmp_path / name).read_bytes() == b"damaged"


def test_a_lost_root_is_not_replaced_under_its_intermediate(tmp_path: Path) -> None:
    fresh(tmp_path)
    (tmp_path / "root.crt").unlink()
    with pytest.raises(AuthorityError, match=r"no root\.crt"):
        fresh(tmp_path)


def test_an_unwritable_directory_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AuthorityError, match="CA directory"):
        fresh(tmp_path / "file")


def test_the_intermediate_is_renewed_before_its_end_and_seen_by_the_others(tmp_path: Path) -> None:
    now = NOW
    first = CertificateAuthority.open(tmp_path / "ca", DOMAIN, clock=lambda: now)
    second = CertificateAuthority.open(tmp_path / "ca", DOMAIN, clock=lambda: now)
    old = first.intermediate
    now += 86400 * 340
    chains = [
        first.sign(request(), WEB, DAY, owner="default/web"),
        second.sign(request(), WEB, DAY, owner="default/web"),
    ]
    assert first.intermediate == second.intermediate != old
    for chain in chains:
        done = verify_with_openssl(tmp_path, first.bundle_pem, chain, "sslserver", now)
        assert done.returncode == 0, done.stderr


def test_an_intermediate_that_ends_with_its_root_is_not_made_again_and_again(tmp_path: Path) -> None:
    now = NOW
    ca = CertificateAuthority.open(tmp_path, DOMAIN, clock=lambda: now)
    now += 86400 * 3640
    ca.sign(request(), WEB, DAY, owner="default/web")
    last = ca.intermediate
    assert last.not_valid_after_utc == ca.root.not_valid_after_utc
    ca.sign(request(), WEB, DAY, owner="default/web")
    assert ca.intermediate == last
    now += 86400 * 11
    with pytest.raises(AuthorityError, match=r"the root .* is over"):
        ca.sign(request(), WEB, DAY, owner="default/web")


def test_without_the_root_key_the_intermediate_signs_to_its_end_and_no_longer(tmp_path: Path) -> None:
    now = NOW
    ca = CertificateAuthority.open(tmp_path, DOMAIN, clock=lambda: now)
    (tmp_path / "root.key").rename(tmp_path / "offline.key")
    now += 86400 * 364.5
    leaf = x509.load_pem_x509_certificates(ca.sign(request(), WEB, DAY, owner="default/web"))[0]
    assert leaf.not_valid_after_utc == ca.intermediate.not_valid_after_utc
    now += 86400
    with pytest.raises(AuthorityError, match="is over") as caught:
        ca.sign(request(), WEB, DAY, owner="default/web")
    assert "root.key" in caught.value.hint
    (tmp_path / "offline.key").rename(tmp_path / "root.key")
    assert ca.sign(request(), WEB, DAY, owner="default/web")


def test_serials_are_long_positive_and_different(tmp_path: Path) -> None:
    ca = fresh(tmp_path)
    chains = [ca.sign(request(), WEB, DAY, owner="default/web") for _ in range(50)]
    serials = {x509.load_pem_x509_certificates(chain)[0].serial_number for chain in chains}
    assert len(serials) == 50
    assert all(0 < serial < 2**159 for serial in serials)
    assert max(serials).bit_length() > 150
