"""JWT-SVIDs: made, shown as keys, and validated. Pure.

What it keeps true: ES256 and nothing else (a token does not choose how it is checked); every token has a
subject, an audience and an end.

Source: SPIFFE JWT-SVID §2-4 and SPIFFE Trust Domain and Bundle §4; RFC 7515 (JWS), RFC 7517 (JWK), RFC 7518
§3.4 (ES256).
"""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from penstock.mtls import spiffe
from penstock.mtls.errors import RequestError

LIFETIME = 300
"""Seconds. A token cannot be taken back: this is how long one of a workload that was revoked still holds."""
LEEWAY = 60
"""Seconds by which clocks may differ."""
_ALGORITHM = "ES256"
_SIZE = 32
"""Bytes of a coordinate, and of each half of a signature."""


def signed(
    key: ec.EllipticCurvePrivateKey, kid: str, spiffe_id: str, audience: Sequence[str], now: float
) -> str:
    """A token of `spiffe_id` for `audience`. Raises RequestError without one."""
    if not audience or not all(audience):
        raise RequestError("a JWT-SVID needs an audience")
    issued = int(now)
    claims = {"sub": spiffe_id, "aud": list(audience), "iat": issued, "exp": issued + LIFETIME}
    head = {"alg": _ALGORITHM, "kid": kid, "typ": "JWT"}
    said = f"{_encoded(_json(head))}.{_encoded(_json(claims))}"
    r, s = decode_dss_signature(key.sign(said.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{said}.{_encoded(r.to_bytes(_SIZE, 'big') + s.to_bytes(_SIZE, 'big'))}"


def jwk(kid: str, key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    numbers = key.public_numbers()
    x, y = (_encoded(n.to_bytes(_SIZE, "big")) for n in (numbers.x, numbers.y))
    return {"kty": "EC", "use": "jwt-svid", "crv": "P-256", "kid": kid, "x": x, "y": y}


def jwks(keys: Iterable[dict[str, str]]) -> str:
    """A bundle: the keys by which tokens of a trust domain are checked."""
    return json.dumps({"keys": list(keys)})


def validated(token: str, bundle: str, audience: str, trust_domain: str, now: float) -> dict[str, Any]:
    """The claims of a token that holds. Raises RequestError, which says why it does not."""
    try:
        said, _, signature = token.rpartition(".")
        head, body = (json.loads(_decoded(part)) for part in said.split("."))
        raw = _decoded(signature)
    except ValueError as error:
        raise RequestError("not a signed token") from error
    if not (isinstance(head, dict) and isinstance(body, dict)):
        raise RequestError("not a signed token")
    if head.get("alg") != _ALGORITHM or head.get("typ", "JWT") not in ("JWT", "JOSE") or "crit" in head:
        raise RequestError(f"its header is not that of a JWT-SVID signed with {_ALGORITHM}")
    found = next((each for each in json.loads(bundle)["keys"] if each["kid"] == head.get("kid")), None)
    if found is None:
        raise RequestError("it is signed with no key of this trust domain")
    _check_signature(found, said.encode(), raw)
    _check_claims(body, audience, trust_domain, now)
    return body


def _check_signature(found: dict[str, str], said: bytes, raw: bytes) -> None:
    x, y = (int.from_bytes(_decoded(found[name]), "big") for name in ("x", "y"))
    if len(raw) != 2 * _SIZE:
        raise RequestError("its signature does not hold")
    halves = (int.from_bytes(half, "big") for half in (raw[:_SIZE], raw[_SIZE:]))
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    try:
        key.verify(encode_dss_signature(*halves), said, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise RequestError("its signature does not hold") from error


def _check_claims(body: dict[str, Any], audience: str, trust_domain: str, now: float) -> None:
    end, start = body.get("exp"), body.get("nbf", 0)
    if not isinstance(end, int | float) or end + LEEWAY < now:
        raise RequestError("it is over, or says no end")
    if not isinstance(start, int | float) or start - LEEWAY > now:
        raise RequestError("it is not valid yet")
    named = body.get("aud")
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or audience not in named:
        raise RequestError(f"it is not for {audience or 'nobody'}")
    subject = body.get("sub")
    if not isinstance(subject, str) or spiffe.parse(subject).trust_domain != trust_domain:
        raise RequestError(f"its subject is nobody of {trust_domain}")


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    """Raises ValueError."""
    return urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
