"""What a client may ask of an xDS server, so that one that asks for too much costs the others nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask of us; -1 and 0 are without limit."""

    request: int = -1
    """Bytes of a request."""
    names: int = 0
    """Names that a stream may have asked for, and types."""
    silence: float = 0.0
    """Seconds after which a client is asked for a sign of life, and then has to give one: else it is gone."""

    def options(self) -> list[tuple[str, int]]:
        found = [("grpc.max_receive_message_length", self.request)]
        if self.silence:
            # The answer to a ping has a limit of its own, of a minute; and without the last one gRPC asks no
            # more after two pings without data.
            names = ("keepalive_time_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms")
            found += [(f"grpc.{name}", round(self.silence * 1000)) for name in names]
            found.append(("grpc.http2.max_pings_without_data", 0))
        return found


UNLIMITED = Limits()
"""For the node's own Envoy: coming back it tells of all that it holds."""
STRANGERS = Limits(request=4 << 20, names=10_000, silence=30.0)
"""For all others. gRPC's own clients ask for a few names a channel."""
