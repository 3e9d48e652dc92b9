"""CAs made with chosen keys, brought along, or signed by openssl; each judged by openssl and by us."""

from __future__ import annotations

import stat
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from penstock.cli.ca import ca as ca_command
from penstock.errors import InputError
from penstock.mtls import certificates, keys, rotation, setup
from penstock.mtls.ca import CertificateAuthority, opened
from penstock.mtls.errors import AuthorityError
from penstock.mtls.keys import KeyType
from penstock.mtls.rotation import Kind
from penstock.mtls.verify import verify

DOMAIN = "mesh.test"
WEB = f"spiffe://{DOMAIN}/ns/default/sa/web"
CA = "basicConstraints=critical,CA:TRUE{}\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n"


def openssl(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def issue(ca: CertificateAuthority) -> bytes:
    request = certificates.signing_request(certificates.new_key())
    return ca.sign(request, WEB, timedelta(hours=1), owner="default/web")


def good(folder: Path, ca: CertificateAuthority) -> None:
    """What it signs passes our rules and openssl's, for both sides of TLS."""
    chain = issue(ca)
    verify(chain, ca.bundle_pem, now=time.time(), spiffe_id=WEB)
    leaf, *others = x509.load_pem_x509_certificates(chain)
    (folder / "bundle.pem").write_bytes(ca.bundle_pem)
    (folder / "leaf.pem").write_bytes(certificates.certificate_pem(leaf))
    (folder / "others.pem").write_bytes(b"".join(map(certificates.certificate_pem, others)))
    for purpose in ("sslclient", "sslserver"):
        command = ["verify", "-x509_strict", "-purpose", purpose, "-CAfile", "bundle.pem"]
        openssl(folder, *command, "-untrusted", "others.pem", "leaf.pem")


class Foreign:
    """Another organisation's CA: RSA, made by openssl, without a word of SPIFFE."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "root.ext").write_text(CA.format(""))
        (folder / "sub.ext").write_text(CA.format(",pathlen:0") + "authorityKeyIdentifier=keyid\n")
        openssl(folder, "req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", "root.key",
                "-subj", "/O=Else/CN=Else Root", "-out", "root.csr")  # fmt: skip
        openssl(folder, "x509", "-req", "-in", "root.csr", "-signkey", "root.key", "-days", "900",
                "-extfile", "root.ext", "-out", "root.crt")  # fmt: skip

    def sign(self, csr: str, name: str) -> Path:
        openssl(self.folder, "x509", "-req", "-in", csr, "-CA", "root.crt", "-CAkey", "root.key",
                "-CAcreateserial", "-days", "400", "-extfile", "sub.ext", "-out", name)  # fmt: skip
        return self.folder / name

    def intermediate(self) -> tuple[Path, Path, Path]:
        openssl(self.folder, "req", "-new", "-newkey", "rsa:3072", "-nodes", "-keyout", "sub.key",
                "-subj", "/O=Else/CN=Else Issuing", "-out", "sub.csr")  # fmt: skip
        return self.folder / "root.crt", self.sign("sub.csr", "sub.crt"), self.folder / "sub.key"


@pytest.fixture
def foreign(tmp_path: Path) -> Foreign:
    (tmp_path / "else").mkdir()
    return Foreign(tmp_path / "else")


@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
@pytest.mark.parametrize("kind", KeyType)
def test_a_ca_with_keys_of_each_kind(tmp_path: Path, kind: KeyType, passphrase: bytes | None) -> None:
    ca = setup.init(tmp_path / "ca", DOMAIN, kind, passphrase)
    good(tmp_path, ca)
    for name in ("root.key", "intermediate.key"):
        path = tmp_path / "ca" / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (b"ENCRYPTED" in path.read_bytes()) == bool(passphrase)
        assert keys.kind_of(keys.read(path, passphrase)) is kind
    with pytest.raises(AuthorityError, match=r"a CA in .* already"):
        setup.init(tmp_path / "ca", DOMAIN, kind, None)
    now: rotation.Rotation | None = rotation.begin(tmp_path / "ca", Kind.ROOT, DOMAIN, passphrase)
    while now is not None:
        now = rotation.advance(tmp_path / "ca", now)
    again = CertificateAuthority.open(tmp_path / "ca", DOMAIN, passphrase=passphrase)
    assert keys.kind_of(keys.read(tmp_path / "ca/root.key", passphrase)) is kind
    good(tmp_path, again)


def test_encrypted_keys_need_their_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.init(tmp_path / "ca", DOMAIN, KeyType.P256, b"secret")
    with pytest.raises(AuthorityError, match="is encrypted") as caught:
        opened(tmp_path / "ca")
    assert "--ca-passphrase-file" in caught.value.hint
    with pytest.raises(AuthorityError, match="wrong passphrase"):
        opened(tmp_path / "ca", b"other")
    (tmp_path / "penstock-ca-passphrase").write_text("secret\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert opened(tmp_path / "ca", keys.passphrase(None))
    with pytest.raises(InputError, match="cannot be read"):
        keys.passphrase(tmp_path / "absent")


def test_a_foreign_ca_is_brought_along(tmp_path: Path, foreign: Foreign) -> None:
    root, chain, key = foreign.intermediate()
    assert setup.bring(tmp_path / "ca", setup.read(root, chain, key, None), DOMAIN, b"ours") is None
    ca = opened(tmp_path / "ca", b"ours")
    assert ca.trust_domain == DOMAIN
    good(tmp_path, ca)
    assert not (tmp_path / "ca/root.key").exists()
    assert b"ENCRYPTED" in (tmp_path / "ca/intermediate.key").read_bytes()
    ca.revoke("web")
    assert x509.load_pem_x509_crl(ca.lists_pem).is_signature_valid(ca.intermediate.public_key())


def test_a_ca_in_use_is_rotated_to_the_one_that_is_brought(tmp_path: Path, foreign: Foreign) -> None:
    directory = tmp_path / "ca"
    ours = setup.init(directory, DOMAIN, KeyType.P256, None)
    root, chain, key = foreign.intermediate()
    now = setup.bring(directory, setup.read(root, chain, key, None), DOMAIN, None)
    assert now is not None
    assert now.kind is Kind.ROOT
    ours.reload()
    assert len(ours.roots) == 2
    while now is not None:
        ours.reload()
        good(tmp_path, ours)
        now = rotation.advance(directory, now)
    ours.reload()
    good(tmp_path, ours)
    assert [c.subject.rfc4514_string() for c in ours.roots] == ["CN=Else Root,O=Else"]
    assert not (directory / "root.key").exists(), "that of the old root"
    back: rotation.Rotation | None = rotation.begin(directory, Kind.ROOT, DOMAIN)
    while back is not None:
        back = rotation.advance(directory, back)
    good(tmp_path, opened(directory))


def test_another_ca_signs_our_intermediate_and_the_next_one(tmp_path: Path, foreign: Foreign) -> None:
    directory = tmp_path / "ca"
    (foreign.folder / "ours.csr").write_bytes(setup.request(directory, DOMAIN, KeyType.P384, None))
    chain = foreign.sign("ours.csr", "ours.crt")
    root = foreign.folder / "root.crt"
    assert setup.install(directory, root, chain, DOMAIN, None) is None
    good(tmp_path, opened(directory))
    with pytest.raises(AuthorityError, match="no signing request"):
        setup.install(directory, root, chain, DOMAIN, None)
    (foreign.folder / "next.csr").write_bytes(setup.request(directory, DOMAIN, KeyType.P256, None))
    with pytest.raises(AuthorityError, match="the key is not that"):
        setup.install(directory, root, chain, DOMAIN, None)
    now = setup.install(directory, root, foreign.sign("next.csr", "next.crt"), DOMAIN, None)
    assert now is not None
    assert now.kind is Kind.INTERMEDIATE
    while now is not None:
        now = rotation.advance(directory, now)
    good(tmp_path, opened(directory))


def test_what_would_not_be_taken_is_not_installed(tmp_path: Path, foreign: Foreign) -> None:
    root, chain, key = foreign.intermediate()
    directory = tmp_path / "ca"
    weak = foreign.folder / "weak.key"
    openssl(foreign.folder, "genrsa", "-out", "weak.key", "1024")
    with pytest.raises(AuthorityError, match="neither ECDSA"):
        setup.read(root, chain, weak, None)
    with pytest.raises(AuthorityError, match="a root does not sign"):
        setup.bring(directory, setup.read(root, root, foreign.folder / "root.key", None), DOMAIN, None)
    other = setup.init(tmp_path / "other", DOMAIN, KeyType.P256, None)
    (tmp_path / "other.crt").write_bytes(other.bundle_pem)
    with pytest.raises(AuthorityError, match="does not lead to a root"):
        setup.bring(directory, setup.read(tmp_path / "other.crt", chain, key, None), DOMAIN, None)
    (foreign.folder / "sub.ext").write_text("basicConstraints=critical,CA:FALSE\n")
    with pytest.raises(AuthorityError, match="would not be taken"):
        setup.bring(directory, setup.read(root, foreign.sign("sub.csr", "bad.crt"), key, None), DOMAIN, None)
    assert not (directory / "root.crt").exists()


def test_the_commands(tmp_path: Path, foreign: Foreign) -> None:
    def run(*argv: str) -> str:
        done = CliRunner().invoke(ca_command, argv, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    where = ("--ca-dir", str(tmp_path / "ca"), "--trust-domain", DOMAIN)
    (foreign.folder / "ours.csr").write_text(run("csr", *where))
    chain = foreign.sign("ours.csr", "ours.crt")
    files = ("--root", str(foreign.folder / "root.crt"), "--intermediate", str(chain))
    assert "installed" in run("install", *where, *files)
    assert "made a CA" in run("init", "--ca-dir", str(tmp_path / "new"), "--trust-domain", DOMAIN)
    root, sub, key = foreign.intermediate()
    said = run("import", "--ca-dir", str(tmp_path / "new"), "--trust-domain", DOMAIN, "--root", str(root),
               "--intermediate", str(sub), "--key", str(key))  # fmt: skip
    assert "penstock ca rotate --root" in said
