"""Every rule of the strict check, each broken alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from penstock.mtls import certificates
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import VerifyError
from penstock.mtls.spiffe import parse
from penstock.mtls.verify import verify

DOMAIN = "mesh.test"
WEB = f"spiffe://{DOMAIN}/ns/default/sa/web"
NOW = 1_800_000_000.0
MOMENT = datetime.fromtimestamp(NOW, UTC)
DAY = timedelta(days=1)

Extensions = dict[type[x509.ExtensionType], tuple[x509.ExtensionType, bool]]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ca")


@pytest.fixture(scope="module")
def ca(directory: Path) -> CertificateAuthority:
    return CertificateAuthority.open(directory, DOMAIN, clock=lambda: NOW)


@pytest.fixture(scope="module")
def signing_key(ca: CertificateAuthority, directory: Path) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key((directory / "intermediate.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def pem(*chain: x509.Certificate) -> bytes:
    return b"".join(map(certificates.certificate_pem, chain))


def rebuilt(
    model: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    change: Callable[[Extensions], None] = lambda extensions: None,
    *,
    issuer: x509.Name | None = None,
    subject: x509.Name | None = None,
    start: datetime | None = None,
) -> x509.Certificate:
    """`model` signed again by `signer`, with its extensions changed."""
    extensions: Extensions = {type(e.value): (e.value, e.critical) for e in model.extensions}
    change(extensions)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject or model.subject)
        .issuer_name(issuer or model.issuer)
        .public_key(model.public_key())
        .serial_number(model.serial_number)
        .not_valid_before(start or model.not_valid_before_utc)
        .not_valid_after(model.not_valid_after_utc)
    )
    for value, critical in extensions.values():
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(signer, hashes.SHA256())


def leaf(ca: CertificateAuthority, spiffe_id: str = WEB) -> x509.Certificate:
    chain = ca.sign(certificates.signing_request(certificates.new_key()), spiffe_id, DAY, owner="default/web")
    return x509.load_pem_x509_certificates(chain)[0]


def test_our_own_chain_is_taken_and_names_its_workload(ca: CertificateAuthority) -> None:
    chain = pem(leaf(ca), ca.intermediate)
    assert verify(chain, ca.bundle_pem, now=NOW, spiffe_id=WEB) == parse(WEB)


def uri(*names: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name) for name in names])


def setting(value: x509.ExtensionType, critical: bool) -> Callable[[Extensions], None]:
    def change(extensions: Extensions) -> None:
        extensions[type(value)] = (value, critical)

    return change


def without(kind: type[x509.ExtensionType]) -> Callable[[Extensions], None]:
    def change(extensions: Extensions) -> None:
        del extensions[kind]

    return change


SAN = x509.SubjectAlternativeName
UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
USAGE_OF_CA = certificates._key_usage(sign=False)

LEAF_FAULTS = {
    "no SAN": (without(SAN), "lacks SubjectAlternativeName"),
    "SAN not critical": (setting(uri(WEB), False), "SAN is not critical"),
    "two URIs": (setting(uri(WEB, WEB + "2"), True), "not exactly one URI"),
    "a DNS name beside": (
        setting(SAN([*uri(WEB), x509.DNSName("web.test")]), True),
        "not exactly one URI",
    ),
    "a DNS name alone": (setting(SAN([x509.DNSName("web.test")]), True), "not exactly one URI"),
    "no SPIFFE ID": (setting(uri("https://mesh.test/web"), True), "must begin with spiffe"),
    "a trust domain": (setting(uri(f"spiffe://{DOMAIN}"), True), "names a trust domain"),
    "another trust domain": (
        setting(uri("spiffe://other.test/ns/a/sa/b"), True),
        "it is the CA of|not permit",
    ),
    "a CA": (setting(x509.BasicConstraints(ca=True, path_length=None), True), "it is a CA"),
    "constraints not critical": (
        setting(x509.BasicConstraints(ca=False, path_length=None), False),
        "BasicConstraints is not critical",
    ),
    "usage of a CA": (setting(USAGE_OF_CA, True), "lacks digitalSignature"),
    "usage not critical": (setting(certificates._key_usage(sign=True), False), "KeyUsage is not critical"),
    "no usage": (without(x509.KeyUsage), "lacks KeyUsage"),
    "no purpose": (without(x509.ExtendedKeyUsage), "lacks ExtendedKeyUsage"),
    "server only": (
        setting(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        "extended key usage",
    ),
    "any purpose": (
        setting(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), False),
        "extended key usage",
    ),
    "unknown critical": (setting(UNKNOWN, True), "unknown critical extension"),
    "no key id": (without(x509.SubjectKeyIdentifier), "lacks SubjectKeyIdentifier"),
    "another issuer's key id": (
        setting(x509.AuthorityKeyIdentifier(bytes(20), None, None), False),
        "names another issuer's key",
    ),
}


@pytest.mark.parametrize(("change", "reason"), LEAF_FAULTS.values(), ids=LEAF_FAULTS.keys())
def test_one_fault_in_a_leaf_is_enough(
    ca: CertificateAuthority,
    signing_key: ec.EllipticCurvePrivateKey,
    change: Callable[[Extensions], None],
    reason: str,
) -> None:
    good = leaf(ca)
    assert verify(pem(rebuilt(good, signing_key), ca.intermediate), ca.bundle_pem, now=NOW)
    with pytest.raises(VerifyError, match=reason):
        verify(pem(rebuilt(good, signing_key, change), ca.intermediate), ca.bundle_pem, now=NOW)


def test_a_harmless_unknown_extension_is_taken(
    ca: CertificateAuthority, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    odd = rebuilt(leaf(ca), signing_key, setting(UNKNOWN, False))
    assert verify(pem(odd, ca.intermediate), ca.bundle_pem, now=NOW)


def test_the_common_name_is_never_an_identity(
    ca: CertificateAuthority, signing_key: ec.EllipticCurvePrivateKey
) -> None:
    named = rebuilt(
        leaf(ca), signing_key, without(SAN), subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, WEB)])
    )
    with pytest.raises(VerifyError, match="lacks SubjectAlternativeName"):
        verify(pem(named, ca.intermediate), ca.bundle_pem, now=NOW)


AUTHORITY_FAULTS = {
    "no CA": (setting(x509.BasicConstraints(ca=False, path_length=None), True), "it is no CA"),
    "usage of a leaf": (setting(certificates._key_usage(sign=True), True), "lacks keyCertSign"),
    "of another domain": (setting(uri("spiffe://other.test"), False), "it is the CA of spiffe://other.test"),
    "with a path": (setting(uri(WEB), False), "it is the CA of"),
    "constrained to another domain": (
        setting(x509.NameConstraints([x509.UniformResourceIdentifier("other.test")], None), True),
        "do not permit mesh.test",
    ),
    "odd constraints": (
        setting(x509.NameConstraints(None, [x509.DNSName("a")]), True),
        "more than permitted URIs",
    ),
}


@pytest.mark.parametrize(("change", "reason"), AUTHORITY_FAULTS.values(), ids=AUTHORITY_FAULTS.keys())
def test_one_fault_in_the_intermediate_is_enough(
    ca: CertificateAuthority, directory: Path, change: Callable[[Extensions], None], reason: str
) -> None:
    root_key = serialization.load_pem_private_key((directory / "root.key").read_bytes(), None)
    assert isinstance(root_key, ec.EllipticCurvePrivateKey)
    bad = rebuilt(ca.intermediate, root_key, change)
    with pytest.raises(VerifyError, match=reason):
        verify(pem(leaf(ca), bad), ca.bundle_pem, now=NOW)


def test_time_is_judged_at_both_ends(ca: CertificateAuthority) -> None:
    chain = pem(leaf(ca), ca.intermediate)
    assert verify(chain, ca.bundle_pem, now=NOW - 300)
    assert verify(chain, ca.bundle_pem, now=NOW + 86400)
    with pytest.raises(VerifyError, match="leaf: it is not valid before"):
        verify(chain, ca.bundle_pem, now=NOW - 301)
    with pytest.raises(VerifyError, match="leaf: it is not valid after"):
        verify(chain, ca.bundle_pem, now=NOW + 86401)


def test_paths_that_do_not_hold_are_refused(
    ca: CertificateAuthority, signing_key: ec.EllipticCurvePrivateKey, tmp_path: Path
) -> None:
    good, stranger = leaf(ca), CertificateAuthority.open(tmp_path, DOMAIN, clock=lambda: NOW)
    for chain, bundle, reason in [
        (pem(good, ca.intermediate), stranger.bundle_pem, "does not lead to a root"),
        (pem(good), ca.bundle_pem, "does not lead to a root"),
        (pem(ca.intermediate, good), ca.bundle_pem, "does not lead to a root"),
        (pem(good, stranger.intermediate), stranger.bundle_pem, "has not signed"),
        (b"nothing", ca.bundle_pem, "not certificates"),
        (pem(good, ca.intermediate), b"", "not certificates"),
    ]:
        with pytest.raises(VerifyError, match=reason):
            verify(chain, bundle, now=NOW)

    own = certificates.new_key()
    self_signed = rebuilt(good, own, issuer=ca.intermediate.subject)
    with pytest.raises(VerifyError, match="has not signed"):
        verify(pem(self_signed, ca.intermediate), ca.bundle_pem, now=NOW)

    below = certificates.new_key()
    sub = certificates.intermediate(below.public_key(), DOMAIN, ca.intermediate, signing_key, MOMENT)
    deep = certificates.leaf(certificates.new_key().public_key(), WEB, sub, below, now=MOMENT, lifetime=DAY)
    with pytest.raises(VerifyError, match="more than 0 CAs stand below it"):
        verify(pem(deep, sub, ca.intermediate), ca.bundle_pem, now=NOW)


def test_the_identity_asked_for_must_be_the_leafs(ca: CertificateAuthority) -> None:
    with pytest.raises(VerifyError, match=r"it is .*/sa/web, not .*/sa/api"):
        verify(pem(leaf(ca), ca.intermediate), ca.bundle_pem, now=NOW, spiffe_id=WEB.replace("web", "api"))


def test_two_roots_in_one_bundle_are_both_trusted(ca: CertificateAuthority, tmp_path: Path) -> None:
    other = CertificateAuthority.open(tmp_path, DOMAIN, clock=lambda: NOW)
    bundle = other.bundle_pem + ca.bundle_pem
    for authority in (ca, other):
        assert verify(pem(leaf(authority), authority.intermediate), bundle, now=NOW)
