"""TLS of a Gateway's own: the certificates that its listeners show, what they ask of clients, and the
certificate that it shows to backends.

Each fault is told where the API wants it: a listener whose certificates or authorities cannot be used is
out of service and says so; a bad client certificate is the Gateway's, which goes on without it.

Source: Gateway API v1.6, ListenerTLSConfig, FrontendTLSConfig (GEP-91), GatewayBackendTLS (GEP-3155).
"""

from __future__ import annotations

from dataclasses import replace

from penstock.manifests.document import Document
from penstock.manifests.gateway_kinds import FrontendTLSValidation, Gateway
from penstock.plan import Condition
from penstock.routing.attach import Entry
from penstock.routing.certificates import Vault
from penstock.routing.model import ServerTls


def server_tls(entry: Entry, gateway: Gateway, vault: Vault) -> ServerTls | None:
    """How a listener that ends TLS does it; None where it cannot, which its status then tells."""
    refs = entry.listener.tls.certificate_refs if entry.listener.tls else []
    names = []
    if not refs:
        entry.resolved = Condition("ResolvedRefs", False, "InvalidCertificateRef", "it names no certificate")
    for ref in refs:
        name, problem = vault.certificate(entry.owner, ref)
        if problem is not None and entry.resolved.status:
            entry.resolved = problem
        if name:
            names.append(name)
    if not names:
        entry.served, entry.why = False, entry.resolved.message
        return None
    shown = tuple(dict.fromkeys(names))
    validation, place = _validation(entry, gateway)
    if validation is None:
        return ServerTls(shown)
    authorities, problem = vault.trusted(entry.gateway, validation.ca_certificate_refs, place)
    if problem is not None and entry.resolved.status:
        entry.resolved = problem
    if not authorities:
        why = problem.message if problem else "it names no authorities"
        entry.accepted = Condition("Accepted", False, "NoValidCACertificate", why)
        entry.served, entry.why = False, why
        return None
    return ServerTls(shown, authorities, validation.mode == "AllowInsecureFallback")


def _validation(entry: Entry, gateway: Gateway) -> tuple[FrontendTLSValidation | None, str]:
    """What is asked of clients, and the name of its authorities. What is said for a port replaces the
    default."""
    frontend = gateway.spec.tls.frontend if gateway.spec.tls else None
    if frontend is None:
        return None, ""
    owner = f"authorities/{entry.gateway.key.namespace}/{entry.gateway.key.name}"
    for each in frontend.per_port:
        if each.port == entry.listener.port:
            return each.tls.validation, f"{owner}:{each.port}"
    return frontend.default.validation, owner


def lenient(gateway: Gateway) -> Condition | None:
    """The Gateway's own warning that clients need prove nothing somewhere."""
    frontend = gateway.spec.tls.frontend if gateway.spec.tls else None
    if frontend is None:
        return None
    asked = [frontend.default.validation, *(each.tls.validation for each in frontend.per_port)]
    if any(v is not None and v.mode == "AllowInsecureFallback" for v in asked):
        why = "clients pass without a valid certificate"
        return Condition("InsecureFrontendValidationMode", True, "ConfigurationChanged", why)
    return None


def client_certificate(document: Document, gateway: Gateway, vault: Vault) -> tuple[str, Condition | None]:
    """The certificate shown to backends that are spoken to over TLS ('' for none), and the Gateway's
    condition."""
    backend = gateway.spec.tls.backend if gateway.spec.tls else None
    if backend is None or backend.client_certificate_ref is None:
        return "", None
    name, problem = vault.certificate(document, backend.client_certificate_ref)
    if problem is None:
        return name, Condition("ResolvedRefs", True, "ResolvedRefs")
    if problem.reason == "InvalidCertificateRef":
        problem = replace(problem, reason="InvalidClientCertificateRef")
    return "", problem
