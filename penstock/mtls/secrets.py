"""SVIDs and the trust bundle as Envoy's SDS resources.

Chain and key travel in one Secret, so that Envoy never holds a chain with another's key; renewal is a new
version under the same name. Names: a workload's is the text of its address, because Envoy asks for
a client's certificate by it (design §6); the bundle's is TRUST_BUNDLE.
"""

from __future__ import annotations

from collections.abc import Mapping

from envoy.config.core.v3.base_pb2 import DataSource
from envoy.extensions.transport_sockets.tls.v3.common_pb2 import CertificateValidationContext, TlsCertificate
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from penstock.mtls.svid import SVID

TRUST_BUNDLE = "trust-bundle"


def secrets(svids: Mapping[str, SVID], bundle_pem: bytes, lists_pem: bytes = b"") -> dict[str, Secret]:
    """Name → Secret for every SVID (keyed by secret name) and for the bundle, with the revocation lists.

    Only leaves are looked up in the lists: a root's own would need its key, which may be offline.
    """
    found = {name: workload_secret(name, kept) for name, kept in svids.items()}
    trusted = CertificateValidationContext(trusted_ca=DataSource(inline_bytes=bundle_pem))
    if lists_pem:
        trusted.crl.inline_bytes = lists_pem
        trusted.only_verify_leaf_cert_crl = True
    found[TRUST_BUNDLE] = Secret(name=TRUST_BUNDLE, validation_context=trusted)
    return found


def workload_secret(name: str, kept: SVID) -> Secret:
    return Secret(
        name=name,
        tls_certificate=TlsCertificate(
            certificate_chain=DataSource(inline_bytes=kept.chain_pem),
            private_key=DataSource(inline_bytes=kept.key_pem),
        ),
    )
