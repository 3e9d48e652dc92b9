"""Our own judgement of a chain, stricter than any TLS library's: exactly what `certificates` makes.

Sources: RFC 5280 §4.2 and §6, SPIFFE X.509-SVID §3 to §5. Identity is the one URI in the SAN; the
subject never counts. Unknown critical extensions are refused. Revocation is not looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from penstock.mtls import spiffe
from penstock.mtls.errors import SpiffeIdError, VerifyError
from penstock.mtls.spiffe import SpiffeId

_CRITICAL = (x509.BasicConstraints, x509.KeyUsage)
_KNOWN = (
    *_CRITICAL,
    x509.SubjectAlternativeName,
    x509.ExtendedKeyUsage,
    x509.NameConstraints,
    x509.SubjectKeyIdentifier,
    x509.AuthorityKeyIdentifier,
)
_ED25519 = SignatureAlgorithmOID.ED25519
_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)

E = TypeVar("E", bound=x509.ExtensionType)


def verify(chain_pem: bytes, bundle_pem: bytes, *, now: float, spiffe_id: str | None = None) -> SpiffeId:
    """Return who the leaf is, if the chain leads to a root of the bundle by every rule at `now`.

    `now` is in seconds since the epoch; with `spiffe_id` the leaf must be that. Raises VerifyError,
    which names the certificate and the rule.
    """
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
        roots = x509.load_pem_x509_certificates(bundle_pem)
    except ValueError as error:
        raise VerifyError(f"not certificates in PEM: {error}") from error
    moment = datetime.fromtimestamp(now, UTC)
    path = [*chain, _root_of(chain[-1], roots)]
    for below, certificate in enumerate(path):
        where = "leaf" if below == 0 else f"CA {certificate.subject.rfc4514_string()}"
        try:
            _check_any(certificate, moment)
            if below == 0:
                identity = _check_leaf(certificate)
            else:
                _check_authority(certificate, identity, intermediates_below=below - 1)
                _check_issued(path[below - 1], certificate)
        except (VerifyError, SpiffeIdError) as error:
            raise VerifyError(f"{where}: {error}") from error
        except (ValueError, TypeError, x509.DuplicateExtension) as error:
            raise VerifyError(f"{where}: malformed: {error}") from error
    if spiffe_id is not None and str(identity) != spiffe_id:
        raise VerifyError(f"leaf: it is {identity}, not {spiffe_id}")
    return identity


def _root_of(last: x509.Certificate, roots: Sequence[x509.Certificate]) -> x509.Certificate:
    for root in roots:
        if root.subject == last.issuer and _signed(last, root) and _signed(root, root):
            return root
    raise VerifyError("the chain does not lead to a root of the trust bundle")


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_any(certificate: x509.Certificate, now: datetime) -> None:
    if certificate.version is not x509.Version.v3:
        raise VerifyError("it is not of version 3")
    if not 0 < certificate.serial_number < 2**159:
        raise VerifyError("its serial number is not positive or too long (RFC 5280 §4.1.2.2)")
    if certificate.signature_algorithm_oid != _ED25519 and not isinstance(
        certificate.signature_hash_algorithm, _HASHES
    ):
        raise VerifyError("it is signed with a weak or unknown hash")
    if now < certificate.not_valid_before_utc:
        raise VerifyError(f"it is not valid before {certificate.not_valid_before_utc}")
    if now > certificate.not_valid_after_utc:
        raise VerifyError(f"it is not valid after {certificate.not_valid_after_utc}")
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _KNOWN):
            raise VerifyError(f"unknown critical extension {extension.oid.dotted_string}")
        if isinstance(extension.value, _CRITICAL) and not extension.critical:
            raise VerifyError(f"{type(extension.value).__name__} is not critical")
    _extension(certificate, x509.SubjectKeyIdentifier)
    _extension(certificate, x509.AuthorityKeyIdentifier)


def _check_leaf(certificate: x509.Certificate) -> SpiffeId:
    if _extension(certificate, x509.BasicConstraints).value.ca:
        raise VerifyError("it is a CA")
    usage = _extension(certificate, x509.KeyUsage).value
    if not usage.digital_signature:
        raise VerifyError("its key usage lacks digitalSignature")
    if usage.key_cert_sign or usage.crl_sign:
        raise VerifyError("its key usage allows signing certificates or CRLs")
    purposes = set(_extension(certificate, x509.ExtendedKeyUsage).value)
    if purposes != {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}:
        raise VerifyError("its extended key usage is not serverAuth and clientAuth")
    san = _extension(certificate, x509.SubjectAlternativeName)
    if not san.critical and not certificate.subject.rdns:
        raise VerifyError("its SAN is not critical though the subject is empty")
    identity = _only_uri(san.value)
    if not identity.path:
        raise VerifyError(f"{identity} names a trust domain, not a workload")
    return identity


def _check_authority(certificate: x509.Certificate, identity: SpiffeId, *, intermediates_below: int) -> None:
    constraints = _extension(certificate, x509.BasicConstraints).value
    if not constraints.ca:
        raise VerifyError("it is no CA")
    if constraints.path_length is not None and intermediates_below > constraints.path_length:
        raise VerifyError(f"more than {constraints.path_length} CAs stand below it")
    usage = _extension(certificate, x509.KeyUsage).value
    if not usage.key_cert_sign:
        raise VerifyError("its key usage lacks keyCertSign")
    if not certificate.subject.rdns:
        raise VerifyError("its subject is empty")
    own = _only_uri(_extension(certificate, x509.SubjectAlternativeName).value)
    if own.path or own.trust_domain != identity.trust_domain:
        raise VerifyError(f"it is the CA of {own}, not of {identity.trust_domain}")
    for extension in certificate.extensions:
        if isinstance(extension.value, x509.NameConstraints):
            _check_constraints(extension.value, identity)


def _check_constraints(constraints: x509.NameConstraints, identity: SpiffeId) -> None:
    permitted = constraints.permitted_subtrees or []
    if constraints.excluded_subtrees or not all(
        isinstance(n, x509.UniformResourceIdentifier) for n in permitted
    ):
        raise VerifyError("its name constraints are more than permitted URIs")
    if permitted and identity.trust_domain not in [name.value for name in permitted]:
        raise VerifyError(f"its name constraints do not permit {identity.trust_domain}")


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    if certificate.issuer != issuer.subject or not _signed(certificate, issuer):
        raise VerifyError("it has not signed the certificate before it")
    named = _extension(certificate, x509.AuthorityKeyIdentifier).value.key_identifier
    if named != _extension(issuer, x509.SubjectKeyIdentifier).value.digest:
        raise VerifyError("the certificate before it names another issuer's key")


def _only_uri(san: x509.SubjectAlternativeName) -> SpiffeId:
    names = list(san)
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise VerifyError("its SAN is not exactly one URI")
    return spiffe.parse(names[0].value)


def _extension(certificate: x509.Certificate, kind: type[E]) -> x509.Extension[E]:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        raise VerifyError(f"it lacks {kind.__name__}") from None
