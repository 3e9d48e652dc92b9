"""What can go wrong with certificates.

PenstockError
├── MtlsError (1)
│   ├── AuthorityError      the CA directory is unusable, or the CA cannot sign
│   ├── ProofError          a stage of a rotation is not proven in time
│   ├── RequestError        a signing request that the CA refuses
│   └── VerifyError         a chain that the rules refuse
└── InputError (2)
    └── SpiffeIdError       not a SPIFFE ID
"""

from __future__ import annotations

from penstock.errors import InputError, PenstockError


class MtlsError(PenstockError):
    """Base of the certificate errors."""


class AuthorityError(MtlsError):
    """The CA directory is unusable, or the CA cannot sign any more."""


class ProofError(MtlsError):
    """A stage of a rotation was not proven in time; it stays as it is."""


class RequestError(MtlsError):
    """A certificate signing request that the CA refuses."""


class VerifyError(MtlsError):
    """A chain that the rules refuse."""


class SpiffeIdError(InputError):
    """A text that is not a SPIFFE ID."""
