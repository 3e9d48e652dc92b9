"""Messages of Envoy 1.40's filter_chain filter: filters inside a filter."""

from __future__ import annotations

from envoy.config.core.v3 import extension_pb2

from penstock.envoy.declared import declare, field

_PACKAGE = "envoy.extensions.filters.http.filter_chain.v3"
_CHAIN = f"{_PACKAGE}.FilterChain"

_made = declare(
    _PACKAGE,
    {
        "FilterChain": [field("filters", 1, "envoy.config.core.v3.TypedExtensionConfig", repeated=True)],
        "FilterChainConfig": [field("default_filter_chain", 1, _CHAIN)],
        "FilterChainConfigPerRoute": [field("filter_chain", 1, _CHAIN)],
    },
    extension_pb2.DESCRIPTOR,
)

FilterChainConfig = _made["FilterChainConfig"]
"""What holds where no route says otherwise."""

FilterChainPerRoute = _made["FilterChainConfigPerRoute"]
"""What holds for a route, or for a table of them."""
