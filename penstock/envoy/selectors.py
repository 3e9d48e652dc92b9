"""Messages of Envoy 1.40's on-demand certificates."""

from __future__ import annotations

from envoy.config.core.v3 import config_source_pb2, extension_pb2

from penstock.envoy.declared import declare, field

_TLS = "envoy.extensions.transport_sockets.tls"

OnDemandSecret = declare(
    f"{_TLS}.cert_selectors.on_demand_secret.v3",
    {
        "Config": [
            field("config_source", 1, "envoy.config.core.v3.ConfigSource"),
            field("certificate_mapper", 2, "envoy.config.core.v3.TypedExtensionConfig"),
        ]
    },
    config_source_pb2.DESCRIPTOR,
    extension_pb2.DESCRIPTOR,
)["Config"]
"""Asks SDS, during the handshake, for the secret that the mapper names."""

SniMapper = declare(f"{_TLS}.cert_mappers.sni.v3", {"SNI": [field("default_value", 1)]})["SNI"]
"""Names the secret by the SNI of the client."""

FilterStateMapper = declare(
    f"{_TLS}.cert_mappers.filter_state_override.v3", {"Config": [field("default_value", 1)]}
)["Config"]
"""Names the secret by filter state under `names.CLIENT_SECRET_STATE`."""
