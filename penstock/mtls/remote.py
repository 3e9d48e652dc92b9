"""A CA that is served elsewhere (`penstock ca serve`), as a node sees it.

    node.pem, join.key    the node's own (node_identity.py)
    state.json            the last that the CA told: good to start with while it does not answer

What it keeps true: a node works on with what it has while the CA is away, to the end of its certificates.
`sign` is for other threads than the event loop's, and fails at once while there is no connection (link.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509

from penstock.files import write_atomically
from penstock.mtls import show, tokens, wire
from penstock.mtls.errors import AuthorityError
from penstock.mtls.link import Link
from penstock.mtls.node_identity import NodeIdentity, after_first
from penstock.mtls.reports import Report
from penstock.mtls.revocation import Revocations
from penstock.mtls.rotation import Rotation
from penstock.mtls.state import State
from penstock.mtls.tokens import Token


@dataclass(frozen=True, slots=True)
class _View:
    """A state with its certificates read."""

    state: State
    roots: tuple[x509.Certificate, ...]
    signer: x509.Certificate

    @classmethod
    def of(cls, state: State) -> _View:
        roots = tuple(x509.load_pem_x509_certificates(state.bundle.encode()))
        return cls(state, roots, x509.load_pem_x509_certificates(state.signer.encode())[0])


class RemoteAuthority:
    """`open` it, `run` it on the event loop; the rest is as in `CertificateAuthority`."""

    def __init__(
        self,
        address: str,
        node: str,
        directory: Path,
        view: _View,
        token: Token | None,
        clock: Callable[[], float],
    ) -> None:
        self.address, self.node, self.directory = address, node, directory
        self.trust_domain = view.state.trust_domain
        self._view = view
        self._pending: State | None = None
        self._changed = asyncio.Event()
        self.identity = NodeIdentity(directory, clock)
        self._link = Link(
            address,
            self.identity,
            token,
            roots=lambda: self.bundle_pem,
            moved=lambda: not self.missing(),
            told=self._told,
            changed=self._tell,
            clock=clock,
        )

    @classmethod
    def open(
        cls,
        address: str,
        node: str,
        directory: Path,
        trust_domain: str,
        token_file: Path | None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> RemoteAuthority:
        """What an earlier run kept, else what the token says. Raises AuthorityError, InputError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        joined = (directory / "node.pem").exists()
        token = None
        if token_file is not None and (not joined or token_file.exists()):
            token = tokens.read(token_file)
            if token.node != node:
                raise AuthorityError(
                    f"the join token is for the node {token.node}, not {node}", hint=f"--node {token.node}"
                )
        try:
            state = msgspec.json.decode((directory / "state.json").read_bytes(), type=State)
        except FileNotFoundError:
            if token is None:
                raise AuthorityError(
                    f"this node has not joined the CA at {address}",
                    hint=f"on the CA: penstock ca token --node {node}; here: --join-token-file FILE",
                ) from None
            state = State(token.trust_domain, token.bundle, after_first(token.chain))
        except (ValueError, msgspec.MsgspecError) as error:
            raise AuthorityError(f"{directory}/state.json is damaged: {error}", hint="join again") from error
        if state.trust_domain != trust_domain:
            raise AuthorityError(
                f"the CA at {address} is of trust domain {state.trust_domain}, not {trust_domain}",
                hint=f"--trust-domain {state.trust_domain}",
            )
        return cls(address, node, directory, _View.of(state), token, clock)

    # --- as CertificateAuthority ---------------------------------------------------------------------------

    @property
    def state(self) -> State:
        return self._view.state

    @property
    def bundle_pem(self) -> bytes:
        return self.state.bundle.encode()

    @property
    def lists_pem(self) -> bytes:
        return self.state.lists.encode()

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        return self._view.roots

    @property
    def root(self) -> x509.Certificate:
        """The root above the intermediate that signs."""
        last = x509.load_pem_x509_certificates(self.state.signer.encode())[-1]
        return next((root for root in self.roots if root.subject == last.issuer), self.roots[0])

    @property
    def intermediate(self) -> x509.Certificate:
        return self._view.signer

    @property
    def rotation(self) -> Rotation | None:
        return self.state.rotation

    @property
    def revoked(self) -> Revocations:
        return self.state.revoked

    def keeps(self, chain_pem: bytes) -> bool:
        return self.rotation is None or chain_pem.endswith(self.state.signer.encode())

    def reload(self) -> None:
        """Take up what the CA told last."""
        if self._pending is not None:
            state, self._pending = self._pending, None
            self._view = _View.of(state)
            self._link.look_again()

    async def changes(self) -> AsyncIterator[None]:
        while True:
            changed = self._changed
            yield
            await changed.wait()

    def where(self) -> dict[str, Any]:
        raise AuthorityError(
            f"the CA of this node is served at {self.address}", hint="run this there, with --ca-dir"
        )

    def warnings(self, now: float) -> list[str]:
        found = []
        if not self._link.connected:
            span = show.remaining(now - self._link.since)
            found.append(f"the CA at {self.address} does not answer since {span}: {self._link.problem}")
        return found + self.identity.warnings(now)

    def missing(self) -> str:
        if self.identity.chain and not self.keeps(self.identity.chain.encode()):
            return "its node certificate has not moved"
        return ""

    def sign(self, csr: bytes, spiffe_id: str, lifetime: timedelta, *, owner: str) -> bytes:
        """Not on the event loop's thread. Raises AuthorityError, also for what the CA refuses."""
        request = wire.SignRequest(csr.decode(), spiffe_id, owner, lifetime.total_seconds())
        found: wire.Chain = self._link.ask("Sign", request, wire.Chain)
        return found.chain.encode()

    def sign_jwt(self, spiffe_id: str, audience: Sequence[str], *, owner: str) -> str:
        """As `sign`."""
        request = wire.JwtRequest(spiffe_id, owner, tuple(audience))
        found: wire.Token = self._link.ask("SignJwt", request, wire.Token)
        return found.token

    async def run(self) -> None:
        """For ever: the connection to the CA."""
        await self._link.run()

    def _told(self, state: State) -> None:
        """By the CA. Raises AuthorityError, ValueError for what cannot be taken."""
        if state.trust_domain != self.trust_domain:
            raise AuthorityError(f"it is of trust domain {state.trust_domain} now")
        _View.of(state)
        write_atomically(self.directory / "state.json", msgspec.json.encode(state))
        self._pending = state

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # --- as Reporter ---------------------------------------------------------------------------------------

    def write(self, report: Report) -> None:
        """Sent when the CA can be reached, and after each time that it could not."""
        self._link.report(report)

    def close(self) -> None:
        pass
