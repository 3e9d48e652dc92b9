"""What is taken back stays taken back: lists, restarts, rotations; every list checked by openssl too."""

from __future__ import annotations

import stat
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from penstock.errors import UsageError
from penstock.mtls import certificates, revocation, rotation
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import AuthorityError, RequestError
from penstock.mtls.issuer import Issuer
from penstock.mtls.revocation import Issued
from penstock.mtls.rotation import Kind
from penstock.plan import SecretWanted

DOMAIN = "mesh.test"
NOW = 1_800_000_000.0
DAY = 86400.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ca(tmp_path: Path, clock: Clock) -> CertificateAuthority:
    return CertificateAuthority.open(tmp_path / "ca", DOMAIN, clock=clock)


def sign(ca: CertificateAuthority, name: str = "web", namespace: str = "default") -> bytes:
    request = certificates.signing_request(certificates.new_key())
    spiffe_id = f"spiffe://{DOMAIN}/ns/{namespace}/sa/{name}"
    return ca.sign(request, spiffe_id, timedelta(days=1), owner=f"{namespace}/{name}")


def serial(chain: bytes) -> str:
    return f"{x509.load_pem_x509_certificates(chain)[0].serial_number:x}"


def openssl_says(folder: Path, ca: CertificateAuthority, chain: bytes, at: float) -> str:
    leaf, *others = x509.load_pem_x509_certificates(chain)
    (folder / "roots.pem").write_bytes(ca.bundle_pem)
    (folder / "leaf.pem").write_bytes(certificates.certificate_pem(leaf))
    (folder / "others.pem").write_bytes(b"".join(map(certificates.certificate_pem, others)))
    (folder / "lists.pem").write_bytes(ca.lists_pem)
    command = (
        f"openssl verify -crl_check -attime {int(at)} -x509_strict -purpose sslclient -CAfile roots.pem "
        "-CRLfile lists.pem -untrusted others.pem leaf.pem"
    )
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, text=True, check=False)
    return "OK" if done.returncode == 0 else done.stderr


def test_an_owner_loses_all_and_gets_nothing_until_it_is_restored(
    tmp_path: Path, ca: CertificateAuthority
) -> None:
    first, second, other = sign(ca), sign(ca), sign(ca, "api")
    assert ca.lists_pem == b""
    assert {c.serial for c in ca.revoke("web")} == {serial(first), serial(second)}
    for chain in (first, second):
        assert "certificate revoked" in openssl_says(tmp_path, ca, chain, NOW)
    assert openssl_says(tmp_path, ca, other, NOW) == "OK"
    with pytest.raises(RequestError, match="default/web was revoked"):
        sign(ca)
    assert ca.revoke("default/web") == ()
    assert ca.restore("web") == "default/web"
    assert openssl_says(tmp_path, ca, sign(ca), NOW) == "OK"
    assert "certificate revoked" in openssl_says(tmp_path, ca, first, NOW)


def test_an_old_serial_goes_alone_and_the_newest_takes_the_owner_along(ca: CertificateAuthority) -> None:
    old, new = sign(ca), sign(ca)
    assert [c.serial for c in ca.revoke(serial(old).upper())] == [serial(old)]
    assert ca.revoked.withheld == {}
    assert ca.revoked.reason("default/web", int(serial(old), 16))
    assert not ca.revoked.reason("default/web", int(serial(new), 16))
    ca.revoke(serial(new))
    assert set(ca.revoked.withheld) == {"default/web"}


def test_names_that_nobody_has_or_several_have(ca: CertificateAuthority) -> None:
    sign(ca), sign(ca, namespace="prod")
    with pytest.raises(AuthorityError, match="neither a workload nor the serial"):
        ca.revoke("nobody")
    with pytest.raises(UsageError, match="several workloads") as caught:
        ca.revoke("web")
    assert "default/web, prod/web" in caught.value.hint
    assert len(ca.revoke("prod/web")) == 1
    with pytest.raises(AuthorityError):
        ca.restore("default/web")


def test_the_next_process_knows_and_keeps_the_very_list(ca: CertificateAuthority, clock: Clock) -> None:
    sign(ca)
    ca.revoke("web")
    again = CertificateAuthority.open(ca.directory, DOMAIN, clock=clock)
    assert again.state == ca.state
    assert again.lists_pem == ca.lists_pem != b""
    assert stat.S_IMODE((ca.directory / "revoked.json").stat().st_mode) == 0o600
    assert stat.S_IMODE((ca.directory / "issued.log").stat().st_mode) == 0o600


def test_a_list_goes_when_what_it_names_is_over(ca: CertificateAuthority, clock: Clock) -> None:
    sign(ca)
    ca.revoke("web")
    clock.now += DAY + 1
    ca.reload()
    assert (ca.lists_pem, ca.revoked.certificates) == (b"", ())
    with pytest.raises(RequestError):
        sign(ca)


@pytest.mark.parametrize("kind", Kind)
def test_every_issuer_has_a_list_at_every_stage_of_a_rotation(
    tmp_path: Path, ca: CertificateAuthority, clock: Clock, kind: Kind
) -> None:
    bad, chains = sign(ca, "bad"), [sign(ca)]
    ca.revoke("bad")
    now: rotation.Rotation | None = rotation.begin(ca.directory, kind, DOMAIN)
    while now is not None:
        ca.reload()
        assert "certificate revoked" in openssl_says(tmp_path, ca, bad, NOW) or not now.trusts_old
        for chain in chains:
            assert openssl_says(tmp_path, ca, chain, NOW) == "OK" or not now.trusts_old
        chains.append(sign(ca))
        assert openssl_says(tmp_path, ca, chains[-1], NOW) == "OK"
        now = rotation.advance(ca.directory, now)
    ca.reload()
    if kind is Kind.INTERMEDIATE:
        assert "certificate revoked" in openssl_says(tmp_path, ca, bad, NOW)
        assert all(openssl_says(tmp_path, ca, chain, NOW) == "OK" for chain in chains)
        ca.revoke(serial(chains[0]))
        assert "certificate revoked" in openssl_says(tmp_path, ca, chains[0], NOW)


def test_an_intermediate_is_not_renewed_by_itself_while_anything_is_revoked(
    ca: CertificateAuthority, clock: Clock
) -> None:
    clock.now += 340 * DAY
    before = ca.intermediate
    revocation.record(ca.directory, Issued("1", certificates.key_id(before), "a/b", "spiffe://x/y", 4e9))
    ca.revoke("a/b")
    sign(ca)
    assert ca.intermediate == before
    clock.now += 24.5 * DAY
    sign(ca)
    assert ca.intermediate != before
    assert len(x509.load_pem_x509_certificates(ca.bundle_pem)) == 1
    assert ca.lists_pem.count(b"BEGIN X509 CRL") == 2


def test_a_node_drops_what_is_revoked_and_takes_a_new_one_when_it_may(
    tmp_path: Path, ca: CertificateAuthority
) -> None:
    secret = SecretWanted("10.0.0.1", f"spiffe://{DOMAIN}/ns/default/sa/web", ("default", "web"))
    issuer = Issuer(ca, directory=tmp_path / "svids")
    first = issuer.reconcile([secret], NOW)["10.0.0.1"]
    assert len(list((tmp_path / "svids").iterdir())) == 1
    ca.revoke("web")
    for each in (issuer, Issuer(ca, directory=tmp_path / "svids")):
        assert each.reconcile([secret], NOW + 5) == {}
        assert "was revoked" in each.withheld[secret.workload, secret.spiffe_id]
        assert each.failures == {}
        assert each.next_renewal() is None
    assert list((tmp_path / "svids").iterdir()) == []
    ca.restore("web")
    second = issuer.reconcile([secret], NOW + 5)["10.0.0.1"]
    assert second.serial != first.serial
    ca.revoke(f"{second.serial:x}")
    ca.restore("web")
    assert issuer.reconcile([secret], NOW + 6)["10.0.0.1"].serial != second.serial


def test_the_log_is_cut_and_a_torn_line_is_passed_over(
    ca: CertificateAuthority, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign(ca)
    log = ca.directory / revocation.LOG
    log.write_bytes(log.read_bytes() + b'{"serial": "12')
    assert len(revocation.issued(ca.directory, NOW)) == 1
    monkeypatch.setattr(revocation, "COMPACT", 10)
    assert revocation.issued(ca.directory, NOW + 2 * DAY) == []
    assert log.read_bytes() == b""
