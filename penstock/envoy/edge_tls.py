"""TLS at the edge: what a Gateway's listeners show and ask for, and what it asks of backends.

Certificates come by SDS under the names of the objects that hold them, so that they are replaced in place.

Source: Gateway API v1.6 (ListenerTLSConfig, FrontendTLSValidation, BackendTLSPolicy); RFC 9325 (TLS 1.2 at
least).
"""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import wrappers_pb2

from penstock.envoy.protos import ADS, pack
from penstock.routing.model import Authorities, Certificate, ServerTls, UpstreamTls

_Validation = common_pb2.CertificateValidationContext
_San = common_pb2.SubjectAltNameMatcher
_Version = common_pb2.TlsParameters.TlsProtocol

SYSTEM_AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def _secret(name: str) -> secret_pb2.SdsSecretConfig:
    return secret_pb2.SdsSecretConfig(name=name, sds_config=ADS)


def downstream(tls: ServerTls, protocols: tuple[str, ...] = ("h2", "http/1.1")) -> base_pb2.TransportSocket:
    """HTTP/2 is offered by ALPN. No session is resumed where clients prove who they are: it would outlive
    what was proven."""
    common = tls_pb2.CommonTlsContext(
        tls_params=common_pb2.TlsParameters(tls_minimum_protocol_version=_Version.TLSv1_2),
        tls_certificate_sds_secret_configs=[_secret(name) for name in tls.certificates],
        alpn_protocols=protocols,
    )
    context = tls_pb2.DownstreamTlsContext(common_tls_context=common)
    if tls.authorities is not None:
        lenient = _Validation.TrustChainVerification.ACCEPT_UNTRUSTED
        combined = tls_pb2.CommonTlsContext.CombinedCertificateValidationContext(
            default_validation_context=_Validation(
                trust_chain_verification=lenient
                if tls.lenient
                else _Validation.TrustChainVerification.VERIFY_TRUST_CHAIN
            ),
            validation_context_sds_secret_config=_secret(tls.authorities),
        )
        context.common_tls_context.combined_validation_context.CopyFrom(combined)
        context.require_client_certificate.CopyFrom(wrappers_pb2.BoolValue(value=not tls.lenient))
        context.disable_stateless_session_resumption = True
        context.disable_stateful_session_resumption = True
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))


def upstream(tls: UpstreamTls, protocols: tuple[str, ...]) -> base_pb2.TransportSocket:
    """TLS to a backend, whose certificate must bear one of the names; `protocols` are offered by ALPN."""
    kinds = {"dns": _San.SanType.DNS, "uri": _San.SanType.URI}
    wanted = tls.names or (("dns", tls.sni),)
    validation = _Validation(
        match_typed_subject_alt_names=[
            _San(san_type=kinds[kind], matcher=string_pb2.StringMatcher(exact=name)) for kind, name in wanted
        ]
    )
    common = tls_pb2.CommonTlsContext(
        tls_params=common_pb2.TlsParameters(
            tls_minimum_protocol_version=_Version.TLSv1_2, tls_maximum_protocol_version=_Version.TLSv1_3
        ),
        alpn_protocols=protocols,
    )
    if tls.authorities is None:
        validation.trusted_ca.filename = SYSTEM_AUTHORITIES
        common.validation_context.CopyFrom(validation)
    else:
        common.combined_validation_context.default_validation_context.CopyFrom(validation)
        common.combined_validation_context.validation_context_sds_secret_config.CopyFrom(
            _secret(tls.authorities)
        )
    if tls.certificate is not None:
        common.tls_certificate_sds_secret_configs.append(_secret(tls.certificate))
    context = tls_pb2.UpstreamTlsContext(common_tls_context=common, sni=tls.sni)
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))


def certificate(each: Certificate) -> Secret:
    return Secret(
        name=each.name,
        tls_certificate=common_pb2.TlsCertificate(
            certificate_chain=base_pb2.DataSource(inline_bytes=each.chain),
            private_key=base_pb2.DataSource(inline_bytes=each.key),
        ),
    )


def authorities(each: Authorities) -> Secret:
    trusted = _Validation(trusted_ca=base_pb2.DataSource(inline_bytes=each.pem))
    return Secret(name=each.name, validation_context=trusted)
