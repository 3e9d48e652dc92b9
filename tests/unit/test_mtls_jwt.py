"""JWT-SVIDs: what a token says, who takes it, and how the keys behind it change."""

from __future__ import annotations

import json
import stat
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from penstock.mtls import certificates, jwt, jwt_keys
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import RequestError

DOMAIN = "mesh.test"
WEB = f"spiffe://{DOMAIN}/ns/default/sa/web"
NOW = 1_800_000_000.0
DAY = 86400.0


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        self.ca = self.open()

    def open(self) -> CertificateAuthority:
        return CertificateAuthority.open(self.folder, DOMAIN, clock=lambda: self.now)

    def token(self, *audience: str, spiffe_id: str = WEB) -> str:
        return self.ca.sign_jwt(spiffe_id, audience or ("db",), owner="default/web")

    def validated(self, token: str, audience: str = "db") -> dict[str, Any]:
        return jwt.validated(token, self.ca.state.jwks, audience, DOMAIN, self.now)

    @property
    def kids(self) -> list[str]:
        return [each["kid"] for each in json.loads(self.ca.state.jwks)["keys"]]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "ca")


def test_what_a_token_says(site: Site) -> None:
    claims = site.validated(site.token("db", "cache"))
    assert claims == {"sub": WEB, "aud": ["db", "cache"], "iat": int(NOW), "exp": int(NOW) + jwt.LIFETIME}
    head = pyjwt.get_unverified_header(site.token())
    assert head == {"alg": "ES256", "kid": site.kids[0], "typ": "JWT"}


def test_an_independent_library_takes_it(site: Site) -> None:
    (published,) = json.loads(site.ca.state.jwks)["keys"]
    assert published["use"] == "jwt-svid"
    key = pyjwt.PyJWK(published).key
    options = {"verify_exp": False, "verify_iat": False}
    found = pyjwt.decode(site.token(), key, algorithms=["ES256"], audience="db", options=options)  # type: ignore[arg-type]
    assert found["sub"] == WEB


@pytest.mark.parametrize(
    ("spiffe_id", "audience"),
    [
        ("spiffe://evil.example/ns/default/sa/web", ("db",)),
        (f"spiffe://{DOMAIN}", ("db",)),
        (WEB, ()),
        (WEB, ("",)),
    ],
)
def test_what_is_not_signed(site: Site, spiffe_id: str, audience: tuple[str, ...]) -> None:
    with pytest.raises(RequestError):
        site.ca.sign_jwt(spiffe_id, audience, owner="default/web")


def test_a_revoked_workload_gets_no_token(site: Site) -> None:
    csr = certificates.signing_request(certificates.new_key())
    site.ca.sign(csr, WEB, timedelta(hours=1), owner="default/web")
    site.ca.revoke("default/web")
    with pytest.raises(RequestError, match="revoked"):
        site.token()
    site.ca.restore("default/web")
    site.token()


def _part(value: Any) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def _with(token: str, part: int, change: Callable[[dict[str, Any]], object]) -> str:
    parts = token.split(".")
    value = json.loads(urlsafe_b64decode(parts[part] + "=" * (-len(parts[part]) % 4)))
    change(value)
    parts[part] = _part(value)
    return ".".join(parts)


@pytest.mark.parametrize(
    ("part", "change", "why"),
    [
        (0, {"alg": "none"}, "header"),
        (0, {"alg": "HS256"}, "header"),
        (0, {"crit": ["exp"]}, "header"),
        (0, {"typ": "other"}, "header"),
        (0, {"kid": "unknown"}, "no key"),
        (1, {"sub": f"spiffe://{DOMAIN}/ns/default/sa/admin"}, "signature"),
        (1, {"exp": NOW + DAY}, "signature"),
        (1, {"aud": ["everything"]}, "signature"),
    ],
)
def test_a_token_that_was_touched_is_refused(site: Site, part: int, change: dict[str, Any], why: str) -> None:
    with pytest.raises(RequestError, match=why):
        site.validated(_with(site.token(), part, lambda value: value.update(change)))


def test_a_signature_of_another_key_or_none_is_refused(site: Site) -> None:
    said = site.token().rpartition(".")[0]
    forged = jwt.signed(ec.generate_private_key(ec.SECP256R1()), site.kids[0], WEB, ["db"], NOW)
    for token in (f"{said}.", f"{said}.AAAA", forged, said, "", "a.b.c", "....", f"{_part(1)}.{_part(2)}.x"):
        with pytest.raises(RequestError):
            site.validated(token)


def test_who_it_is_for_and_until_when(site: Site) -> None:
    token = site.token()
    with pytest.raises(RequestError, match="not for cache"):
        site.validated(token, "cache")
    site.now += jwt.LIFETIME + jwt.LEEWAY
    site.validated(token)
    site.now += 1
    with pytest.raises(RequestError, match="over"):
        site.validated(token)


def test_a_token_of_another_trust_domain_is_refused_though_its_key_is_known(site: Site) -> None:
    with pytest.raises(RequestError, match=r"nobody of other\.test"):
        jwt.validated(site.token(), site.ca.state.jwks, "db", "other.test", NOW)


def test_a_key_is_published_before_it_signs_and_after_it_has_signed(site: Site) -> None:
    """Through 200 days, asked four times a day: each token holds by the bundle of a while ago, too."""
    signing: list[str] = []
    earlier: list[tuple[float, str]] = []
    for _ in range(800):
        site.now += DAY / 4
        token = site.token()
        kid = pyjwt.get_unverified_header(token)["kid"]
        bundle = site.ca.state.jwks
        earlier = [(at, old) for at, old in [*earlier, (site.now, bundle)] if at >= site.now - 0.8 * DAY]
        for _, old in earlier:
            jwt.validated(token, old, "db", DOMAIN, site.now)
        if not signing or signing[-1] != kid:
            signing.append(kid)
        assert len(site.kids) <= 2
    assert len(signing) == len(set(signing)) == 7
    left = {path.stem for path in (site.folder / jwt_keys.FOLDER).glob("*.key")}
    assert left == set(site.kids)


def test_keys_outlive_the_daemon_and_are_its_own(site: Site) -> None:
    token, kids = site.token(), site.kids
    site.ca = site.open()
    assert site.kids == kids
    site.validated(token)
    (path,) = (site.folder / jwt_keys.FOLDER).glob("*.key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PRIVATE" not in site.ca.state.jwks
    assert "d" not in json.loads(site.ca.state.jwks)["keys"][0]


def test_keys_are_encrypted_with_the_passphrase(tmp_path: Path) -> None:
    CertificateAuthority.open(tmp_path / "ca", DOMAIN, passphrase=b"open sesame")
    (path,) = (tmp_path / "ca" / jwt_keys.FOLDER).glob("*.key")
    assert b"ENCRYPTED" in path.read_bytes()


def test_a_key_that_is_lost_is_replaced_and_what_it_signed_holds(site: Site) -> None:
    token = site.token()
    (path,) = (site.folder / jwt_keys.FOLDER).glob("*.key")
    path.unlink()
    site.ca.reload()
    site.validated(token)
    site.validated(site.token())
    assert len(site.kids) == 2
