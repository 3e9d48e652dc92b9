"""Filter state that says whose a connection or a request is; upstream filters and TLS read it."""

from __future__ import annotations

from envoy.config.core.v3 import base_pb2, substitution_format_string_pb2
from envoy.extensions.filters.common.set_filter_state.v3 import value_pb2

from penstock.envoy import names

_State = value_pb2.FilterStateValue


def state(key: str, factory: str, text: str) -> value_pb2.FilterStateValue:
    """`text` is a format of Envoy's access logs."""
    return _State(
        object_key=key,
        factory_key=factory,
        format_string=substitution_format_string_pb2.SubstitutionFormatString(
            text_format_source=base_pb2.DataSource(inline_string=text)
        ),
        shared_with_upstream=_State.SharedWithUpstream.ONCE,
    )


def source_class(text: str) -> value_pb2.FilterStateValue:
    return state(names.SOURCE_CLASS_STATE, "envoy.string", text)


def client_secret(text: str) -> value_pb2.FilterStateValue:
    """The name of the client certificate: the address that the client has towards backends.

    A hashable string: only then does it keep upstream connections of different clients apart.
    """
    return state(names.CLIENT_SECRET_STATE, "envoy.hashable_string", text)
