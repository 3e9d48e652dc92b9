"""Mesh TLS on both sides: TLS 1.3, a certificate on demand, exactly one SPIFFE id on the other side.

No sessions are resumed: Envoy refuses a configuration that has both resumption and certificates on demand,
and a resumed session would carry an identity that was proven earlier. docs/performance.md says what it costs.
"""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import wrappers_pb2

from penstock.envoy.names import NO_SECRET, TRUST_BUNDLE
from penstock.envoy.protos import ADS, extension, pack
from penstock.envoy.selectors import FilterStateMapper, OnDemandSecret, SniMapper

_TLS13 = common_pb2.TlsParameters(
    tls_minimum_protocol_version=common_pb2.TlsParameters.TlsProtocol.TLSv1_3,
    tls_maximum_protocol_version=common_pb2.TlsParameters.TlsProtocol.TLSv1_3,
)


def _only(spiffe_id: str) -> tls_pb2.CommonTlsContext.CombinedCertificateValidationContext:
    matcher = common_pb2.SubjectAltNameMatcher(
        san_type=common_pb2.SubjectAltNameMatcher.SanType.URI,
        matcher=string_pb2.StringMatcher(exact=spiffe_id),
    )
    return tls_pb2.CommonTlsContext.CombinedCertificateValidationContext(
        default_validation_context=common_pb2.CertificateValidationContext(
            match_typed_subject_alt_names=[matcher]
        ),
        validation_context_sds_secret_config=secret_pb2.SdsSecretConfig(name=TRUST_BUNDLE, sds_config=ADS),
    )


def upstream(server_id: str, *, sni_of_endpoint: bool) -> base_pb2.TransportSocket:
    """Mesh TLS to a server that must be `server_id`, with the certificate of the client's address.

    `sni_of_endpoint` sends the endpoint's host name (its address) as SNI; else filter state does.
    """
    selector = OnDemandSecret(
        config_source=ADS,
        certificate_mapper=extension(
            "envoy.tls.upstream_certificate_mappers.filter_state_override",
            FilterStateMapper(default_value=NO_SECRET),
        ),
    )
    context = tls_pb2.UpstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(
            tls_params=_TLS13,
            custom_tls_certificate_selector=extension(
                "envoy.tls.upstream_certificate_selectors.on_demand_secret", selector
            ),
            combined_validation_context=_only(server_id),
        ),
        auto_host_sni=sni_of_endpoint,
        max_session_keys=wrappers_pb2.UInt32Value(value=0),
    )
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))


def downstream(peer_id: str) -> base_pb2.TransportSocket:
    """Mesh TLS from a client that must be `peer_id`, with the certificate that its SNI names."""
    selector = OnDemandSecret(
        config_source=ADS,
        certificate_mapper=extension("envoy.tls.certificate_mappers.sni", SniMapper(default_value=NO_SECRET)),
    )
    context = tls_pb2.DownstreamTlsContext(
        common_tls_context=tls_pb2.CommonTlsContext(
            tls_params=_TLS13,
            custom_tls_certificate_selector=extension(
                "envoy.tls.certificate_selectors.on_demand_secret", selector
            ),
            combined_validation_context=_only(peer_id),
        ),
        require_client_certificate=wrappers_pb2.BoolValue(value=True),
        disable_stateless_session_resumption=True,
        disable_stateful_session_resumption=True,
    )
    return base_pb2.TransportSocket(name="envoy.transport_sockets.tls", typed_config=pack(context))
