"""What can go wrong with Envoy as a process.

HostError
├── EnvoyMissingError   there is no Envoy binary
├── EnvoyStartError     it ended, or did not answer, while it was started
└── EnvoyAdminError     its admin interface does not answer as it should
"""

from __future__ import annotations

from penstock.errors import HostError


class EnvoyMissingError(HostError):
    pass


class EnvoyStartError(HostError):
    pass


class EnvoyAdminError(HostError):
    pass
