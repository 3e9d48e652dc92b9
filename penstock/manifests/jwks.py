"""Whether a text is a set of keys that tokens can be checked against. Envoy refuses one that is not.

Source: RFC 7517 (JWK), RFC 7518 (6: parameters of keys), RFC 8037 (OKP).
"""

from __future__ import annotations

import json
import re

_NEEDS = {"RSA": ("n", "e"), "EC": ("crv", "x", "y"), "oct": ("k",), "OKP": ("crv", "x")}
_CURVES = {"EC": ("P-256", "P-384", "P-521"), "OKP": ("Ed25519",)}
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")


def fault(text: str) -> str:
    """What is wrong with a JWKS; '' if nothing is."""
    try:
        keys = json.loads(text)["keys"]
    except (ValueError, TypeError, KeyError):
        return 'is no JWKS: a JSON object with "keys"'
    if not isinstance(keys, list) or not keys:
        return "holds no keys"
    for number, key in enumerate(keys):
        if not isinstance(key, dict):
            return f"holds a key ({number}) that is no object"
        kind = str(key.get("kty"))
        if kind not in _NEEDS:
            return f'holds a key ({number}) of the type "{kind}"; it knows {", ".join(_NEEDS)}'
        for name in _NEEDS[kind]:
            if not isinstance(key.get(name), str) or not _BASE64URL.fullmatch(key[name]):
                return f'holds a key ({number}) without a right "{name}"'
        if kind in _CURVES and key["crv"] not in _CURVES[kind]:
            return f'holds a key ({number}) of the curve "{key["crv"]}"; it knows {", ".join(_CURVES[kind])}'
    return ""
