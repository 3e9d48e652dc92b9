"""Certificates and authorities that manifests bring: v1 Secrets and ConfigMaps → what Envoy is given by SDS.

A name stands for the object, so a new certificate in the same Secret replaces the old one in place, under the
connections that are open.

Source: Gateway API v1.6, ListenerTLSConfig, FrontendTLSValidation; Kubernetes Secret (kubernetes.io/tls).
"""

from __future__ import annotations

from base64 import b64decode
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import types as keys
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.gateway_kinds import CertificateReference, ConfigMap, ObjectReference, Secret
from penstock.plan import Condition
from penstock.routing.model import Authorities, Certificate
from penstock.routing.rules import Services
from penstock.world import World

CERTIFICATE, KEY, AUTHORITIES = "tls.crt", "tls.key", "ca.crt"


def _resolved(reason: str, message: str) -> Condition:
    return Condition("ResolvedRefs", False, reason, message)


def _bytes(data: dict[str, str], texts: dict[str, str], key: str) -> bytes:
    if key in texts:
        return texts[key].encode()
    return b64decode("".join(data.get(key, "").split()))


class Vault:
    """Reads Secrets and ConfigMaps, and keeps what was asked for: `certificates` and `authorities`."""

    def __init__(self, world: World, services: Services) -> None:
        self._secrets = {d.key: d for d, _ in world.of_kind(Secret)}
        self._maps = {d.key: d for d, _ in world.of_kind(ConfigMap)}
        self._services = services
        self.certificates: dict[str, Certificate] = {}
        self.authorities: dict[str, Authorities] = {}

    def _permitted(self, source: ObjectKey, kind: str, namespace: str, name: str) -> bool:
        return self._services.allow(source, kind, namespace, name)

    def certificate(self, owner: Document, ref: ObjectReference) -> tuple[str, Condition | None]:
        """The name of the certificate that `owner` means, or why there is none."""
        namespace = ref.namespace or owner.key.namespace
        what = f"Secret {namespace}/{ref.name}"
        if (ref.group, ref.kind) != ("", "Secret"):
            return "", _resolved("InvalidCertificateRef", f"{ref.kind} {ref.name} is no Secret")
        if not self._permitted(owner.key, "Secret", namespace, ref.name):
            return "", _resolved(
                "RefNotPermitted", f"no ReferenceGrant of namespace {namespace} permits {what}"
            )
        document = self._secrets.get(ObjectKey("Secret", namespace, ref.name))
        if document is None:
            return "", _resolved("InvalidCertificateRef", f"there is no {what}")
        secret = document.value
        assert isinstance(secret, Secret)
        chain = _bytes(secret.data, secret.string_data, CERTIFICATE)
        key = _bytes(secret.data, secret.string_data, KEY)
        if why := flaw(chain, key):
            return "", _resolved("InvalidCertificateRef", f"{what}: {why}")
        name = f"certificate/{namespace}/{ref.name}"
        self.certificates[name] = Certificate(name, chain, key)
        return name, None

    def trusted(
        self, owner: Document, refs: list[CertificateReference], name: str
    ) -> tuple[str, Condition | None]:
        """The authorities of all `refs` under one name, or what is wrong with the first that is not usable.

        The name is '' if none is usable.
        """
        found: list[bytes] = []
        problem: Condition | None = None
        for ref in refs:
            pem, why = self._authority(owner, ref)
            problem = problem or why
            if pem:
                found.append(pem)
        if not found:
            return "", problem
        self.authorities[name] = Authorities(name, b"\n".join(found))
        return name, problem

    def _authority(self, owner: Document, ref: CertificateReference) -> tuple[bytes, Condition | None]:
        namespace = ref.namespace or owner.key.namespace
        what = f"{ref.kind} {namespace}/{ref.name}"
        if ref.group != "" or ref.kind not in ("ConfigMap", "Secret"):
            return b"", _resolved("InvalidCACertificateKind", f"{ref.kind} {ref.name} holds no authorities")
        if not self._permitted(owner.key, ref.kind, namespace, ref.name):
            why = f"no ReferenceGrant of namespace {namespace} permits {what}"
            return b"", _resolved("RefNotPermitted", why)
        documents = self._maps if ref.kind == "ConfigMap" else self._secrets
        document = documents.get(ObjectKey(ref.kind, namespace, ref.name))
        if document is None:
            return b"", _resolved("InvalidCACertificateRef", f"there is no {what}")
        value = document.value
        if isinstance(value, ConfigMap):
            pem = _bytes(value.binary_data, value.data, AUTHORITIES)
        else:
            assert isinstance(value, Secret)
            pem = _bytes(value.data, value.string_data, AUTHORITIES)
        if why := no_authorities(pem):
            return b"", _resolved("InvalidCACertificateRef", f"{what}: {why}")
        return pem, None


def _public(key: keys.PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@lru_cache(maxsize=1024)
def flaw(chain: bytes, key: bytes) -> str:
    """What is wrong with a certificate and its key; '' if they fit."""
    for name, value in ((CERTIFICATE, chain), (KEY, key)):
        if not value.strip():
            return f"it has no {name}"
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError:
        return f"{CERTIFICATE} is not a certificate in PEM"
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return f"{KEY} is not a private key in PEM"
    return "" if _public(leaf.public_key()) == _public(private.public_key()) else f"{KEY} is another's"


@lru_cache(maxsize=1024)
def no_authorities(pem: bytes) -> str:
    """What is wrong with a bundle of authorities; '' if it holds at least one."""
    if not pem.strip():
        return f"it has no {AUTHORITIES}"
    try:
        x509.load_pem_x509_certificates(pem)
    except ValueError:
        return f"{AUTHORITIES} is not a certificate in PEM"
    return ""
