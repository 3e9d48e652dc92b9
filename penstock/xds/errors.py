"""Errors of the xDS server.

PenstockError
├── ProtocolError           a client broke the xDS protocol; its stream ends with INVALID_ARGUMENT
└── DuplicateResourceError  our own compiler gave two resources one name
"""

from __future__ import annotations

from penstock.errors import PenstockError


class ProtocolError(PenstockError):
    """A request that cannot be given a meaning. Ends the stream that it came on, and no other."""


class DuplicateResourceError(PenstockError):
    """Two resources of one type with one name: a client would refuse the response as a whole."""
