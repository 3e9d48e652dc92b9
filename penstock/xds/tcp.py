"""xDS over TCP: mutual TLS by the mesh's own CA, or nothing.

Who connects must show a certificate that our roots vouch for, of our trust domain and not revoked; gRPC asks
for it in the handshake, so that nobody without one gets a byte of ours, and we look again at each stream and
each time that there may be something to say. The server's own certificate is for a SPIFFE id of its own and
for the node's name, and is made anew at half of its life, or when the CA has got other issuers.

What Envoy is told is never served here: it holds the keys of workloads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
from cryptography import x509

from penstock.errors import PenstockError
from penstock.mtls import certificates, origin, spiffe
from penstock.mtls.ca import CertificateAuthority

log = logging.getLogger(__name__)

LIFETIME = timedelta(hours=24)


class TcpAccess:
    """Where to listen (``ADDRESS:PORT``), and who may come. `name` is the host name in our certificate."""

    def __init__(self, listen: str, ca: CertificateAuthority, name: str) -> None:
        self.listen = listen
        self._ca, self._name = ca, name
        self._own: tuple[float, bytes, bytes] | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Raises PenstockError if the CA gives no certificate."""
        return grpc.dynamic_ssl_server_credentials(self._configuration(), self._now, True)

    def admitted(self, context: Any) -> Callable[[], str]:
        """For a stream: a function that says why its client may not be here (any more); "" if it may."""
        shown = context.auth_context().get("x509_pem_cert")
        if not shown:
            return lambda: "no certificate was shown"
        leaf = x509.load_pem_x509_certificates(shown[0])[0]
        return lambda: self._refusal(leaf)

    def _refusal(self, leaf: x509.Certificate) -> str:
        try:
            identity = spiffe.parse(origin.uri(leaf))
        except (PenstockError, ValueError) as error:
            return f"the certificate has no SPIFFE id: {error}"
        if identity.trust_domain != self._ca.trust_domain:
            return f"{identity} is not of trust domain {self._ca.trust_domain}"
        if leaf.not_valid_after_utc.timestamp() < time.time():
            return "the certificate is over"
        return self._ca.revoked.reason("", leaf.serial_number)

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        now = time.time()
        if self._own is None or now > self._own[0] or not self._ca.keeps(self._own[2]):
            key = certificates.new_key()
            chain = self._ca.sign(
                certificates.signing_request(key),
                str(spiffe.for_workload(self._ca.trust_domain, "penstock", "xds")),
                LIFETIME,
                owner=f"the xDS server of {self._name}",
                host_names=(self._name,),
            )
            self._own = (now + LIFETIME.total_seconds() / 2, certificates.key_pem(key), chain)
        _, key_pem, chain = self._own
        return grpc.ssl_server_certificate_configuration([(key_pem, chain)], self._ca.bundle_pem)

    def _now(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks at each handshake. None: what it has is good."""
        try:
            return self._configuration()
        except PenstockError as error:
            log.error("no certificate for the xDS server: %s", error)
            return None
