"""Certificates of a node's workloads through time, restarts and a failing CA."""

from __future__ import annotations

import random
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret

from penstock.mtls import certificates
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.issuer import Issuer
from penstock.mtls.secrets import TRUST_BUNDLE, secrets
from penstock.mtls.svid import SVID
from penstock.mtls.verify import verify
from penstock.plan import SecretWanted

DOMAIN = "mesh.test"
NOW = 1_800_000_000.0
DAY = 86400.0


def wanted(name: str, workload: str = "web", account: str = "web") -> SecretWanted:
    return SecretWanted(name, f"spiffe://{DOMAIN}/ns/default/sa/{account}", ("default", workload))


WEB = wanted("10.0.0.1")
WEB6 = wanted("fd00::1")
API = wanted("10.0.0.2", "api", "api")


class Node:
    """A CA, a daemon's issuer and a time of their own.

    The intermediate is in its last weeks and the root's key is away, so the CA looks at its directory for
    every signature, and fails where that is damaged.
    """

    def __init__(self, directory: Path, *, lifetime: float = DAY) -> None:
        self.now = NOW - 340 * DAY
        self.directory = directory
        self.lifetime = timedelta(seconds=lifetime)
        self.ca = CertificateAuthority.open(directory / "ca", DOMAIN, clock=lambda: self.now)
        (directory / "ca/root.key").unlink()
        self.now = NOW
        self.issuer = self.daemon()

    def daemon(self, seed: int = 1) -> Issuer:
        folder = self.directory / "svids"
        return Issuer(self.ca, lifetime=self.lifetime, directory=folder, random=random.Random(seed).random)

    def reconcile(self, *secrets_wanted: SecretWanted) -> dict[str, SVID]:
        return self.issuer.reconcile(secrets_wanted, self.now)

    def files(self) -> list[Path]:
        return list((self.directory / "svids").iterdir())

    @contextmanager
    def failing_ca(self) -> Iterator[None]:
        certificate = self.directory / "ca/intermediate.crt"
        content = certificate.read_bytes()
        certificate.write_bytes(b"damaged")
        yield
        certificate.write_bytes(content)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_a_workload_has_one_certificate_for_all_its_addresses(node: Node) -> None:
    got = node.reconcile(WEB, WEB6, API)
    assert got.keys() == {"10.0.0.1", "fd00::1", "10.0.0.2"}
    assert got["10.0.0.1"] is got["fd00::1"]
    assert got["10.0.0.1"].key_pem != got["10.0.0.2"].key_pem
    for secret in (WEB, API):
        kept = got[secret.name]
        verify(kept.chain_pem, node.ca.bundle_pem, now=NOW, spiffe_id=secret.spiffe_id)
        assert kept.workload == secret.workload
        assert (kept.not_before, kept.issued_at, kept.not_after) == (NOW - 300, NOW, NOW + DAY)


def test_two_workloads_of_one_account_share_nothing(node: Node) -> None:
    got = node.reconcile(wanted("10.0.0.1", "web-1"), wanted("10.0.0.2", "web-2"))
    assert got["10.0.0.1"].key_pem != got["10.0.0.2"].key_pem


def test_nothing_changes_before_it_is_due(node: Node) -> None:
    first = node.reconcile(WEB)
    due = node.issuer.next_renewal()
    assert due is not None
    assert NOW + 0.05 * DAY <= due <= NOW + 0.5 * DAY
    node.now = due - 1
    assert node.reconcile(WEB) == first
    node.now = due
    second = node.reconcile(WEB)[WEB.name]
    assert second.key_pem != first[WEB.name].key_pem
    assert second.not_after == pytest.approx(due + DAY, abs=1)
    assert len(node.files()) == 1


def test_short_lives_are_renewed_by_their_own_length(tmp_path: Path) -> None:
    node = Node(tmp_path, lifetime=10)
    first = node.reconcile(WEB)
    due = node.issuer.next_renewal()
    assert due is not None
    assert NOW + 0.5 <= due <= NOW + 5
    assert node.reconcile(WEB) == first


def a_round(node: Node, names: list[int]) -> list[float]:
    """When each of these is renewed next, one after the other."""
    all_ = [wanted(f"{name}", f"w{name}") for name in names]
    node.reconcile(*all_)
    seen = []
    for _ in names:
        due = node.issuer.next_renewal()
        assert due is not None
        seen.append(due)
        node.now = due
        node.reconcile(*all_)
    return seen


def test_the_first_renewals_of_many_are_spread_evenly(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.issuer = Issuer(node.ca, random=random.Random(5).random)
    dues = a_round(node, list(range(300)))
    assert min(dues) >= NOW + 0.05 * DAY
    assert max(dues) <= NOW + 0.5 * DAY
    thirtieths = Counter(int((due - NOW - 0.05 * DAY) / (0.45 * DAY) * 30) for due in dues)
    assert set(thirtieths) == set(range(30))
    assert max(thirtieths.values()) <= 13


def test_who_comes_takes_the_place_in_time_of_who_went(tmp_path: Path) -> None:
    """So that workloads that come and go without an end leave the spread as even as it was."""
    node = Node(tmp_path)
    node.issuer = Issuer(node.ca, random=random.Random(5).random)
    names = list(range(30))

    def places() -> set[float]:
        return {round(due / (0.45 * DAY) % 1, 4) for due in a_round(node, names)}

    before = places()
    assert len(before) == 30
    for name in range(30, 100):
        names[name * 7 % 30] = name
        node.reconcile(*(wanted(f"{each}", f"w{each}") for each in names))
    assert places() == before


def test_the_same_random_source_gives_the_same_times(tmp_path: Path) -> None:
    node = Node(tmp_path)
    times = []
    for seed in (7, 7, 8):
        issuer = Issuer(node.ca, random=random.Random(seed).random)
        issuer.reconcile([WEB], NOW)
        times.append(issuer.next_renewal())
    assert times[0] == times[1] != times[2]


def test_an_absent_workload_is_forgotten_on_disk_too(node: Node) -> None:
    first = node.reconcile(WEB, API)
    assert len(node.files()) == 2
    assert node.reconcile(API).keys() == {API.name}
    assert len(node.files()) == 1
    again = node.reconcile(WEB, API)
    assert again[WEB.name].key_pem != first[WEB.name].key_pem
    assert again[API.name] is first[API.name]
    assert node.reconcile() == {}
    assert node.files() == []
    assert node.issuer.next_renewal() is None


def test_an_address_that_changes_hands_has_the_new_owners_certificate(node: Node) -> None:
    first = node.reconcile(WEB)
    second = node.reconcile(wanted(WEB.name, "api", "api"))
    assert second[WEB.name].workload == ("default", "api")
    assert second[WEB.name].key_pem != first[WEB.name].key_pem


def test_a_new_service_account_means_a_new_key(node: Node) -> None:
    first = node.reconcile(WEB)[WEB.name]
    second = node.reconcile(wanted(WEB.name, "web", "admin"))[WEB.name]
    assert second.spiffe_id.endswith("/sa/admin")
    assert second.key_pem != first.key_pem
    assert len(node.files()) == 1


def test_a_failed_renewal_keeps_the_valid_certificate_and_tries_again(node: Node) -> None:
    first = node.reconcile(WEB)
    due = node.issuer.next_renewal()
    assert due is not None
    node.now = due
    pauses = []
    with node.failing_ca():
        for _ in range(12):
            assert node.reconcile(WEB) == first
            assert "not a certificate" in node.issuer.failures[WEB.workload, WEB.spiffe_id]
            due = node.issuer.next_renewal()
            assert due is not None
            pauses.append(due - node.now)
            node.now = due
    assert all(0.5 * 2**i <= pause <= 2**i for i, pause in enumerate(pauses[:8]))
    assert all(150 <= pause <= 300 for pause in pauses[9:])
    assert node.reconcile(WEB) != first
    assert node.issuer.failures == {}


def test_even_after_its_end_it_stays_until_there_is_another(node: Node) -> None:
    first = node.reconcile(WEB)
    node.now += 2 * DAY
    with node.failing_ca():
        assert node.reconcile(WEB) == first


def test_a_workload_without_a_first_certificate_has_no_secret_and_a_reason(node: Node) -> None:
    bad = SecretWanted("10.0.0.3", "spiffe://other.test/ns/default/sa/bad", ("default", "bad"))
    assert node.reconcile(bad, WEB).keys() == {WEB.name}
    assert node.issuer.failures.keys() == {(bad.workload, bad.spiffe_id)}


def test_a_restarted_daemon_serves_the_same_bytes_without_the_ca(node: Node) -> None:
    first = node.reconcile(WEB, WEB6, API)
    node.issuer = node.daemon(seed=2)
    with node.failing_ca():
        assert node.reconcile(WEB, WEB6, API) == first
    assert node.issuer.failures == {}
    assert {stat.S_IMODE(path.stat().st_mode) for path in node.files()} == {0o600}


def test_a_restarted_daemon_forgets_who_went_meanwhile_and_what_was_half_written(node: Node) -> None:
    first = node.reconcile(WEB, API)
    (node.directory / "svids/.half.pem.tmp").write_bytes(b"-----BEGIN PRIV")
    node.issuer = node.daemon()
    assert node.reconcile(API) == {API.name: first[API.name]}
    assert len(node.files()) == 1


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 300, None])
def test_a_damaged_file_is_replaced(node: Node, content: bytes | None) -> None:
    first = node.reconcile(WEB)[WEB.name]
    (path,) = node.files()
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    node.issuer = node.daemon()
    second = node.reconcile(WEB)[WEB.name]
    assert second.serial != first.serial
    assert path.read_bytes() == second.key_pem + second.chain_pem


def test_a_certificate_with_anothers_key_is_not_adopted(node: Node) -> None:
    first = node.reconcile(WEB)[WEB.name]
    (path,) = node.files()
    path.write_bytes(certificates.key_pem(certificates.new_key()) + first.chain_pem)
    node.issuer = node.daemon()
    assert node.reconcile(WEB)[WEB.name].serial != first.serial


def test_anothers_certificate_is_not_adopted(node: Node) -> None:
    node.reconcile(WEB)
    (path,) = node.files()
    web = path.read_bytes()
    node.issuer = node.daemon()
    node.reconcile(API)
    (path,) = node.files()
    path.write_bytes(web)
    node.issuer = node.daemon()
    verify(node.reconcile(API)[API.name].chain_pem, node.ca.bundle_pem, now=NOW, spiffe_id=API.spiffe_id)


def test_what_expired_or_was_signed_by_another_root_is_not_adopted(node: Node, tmp_path: Path) -> None:
    first = node.reconcile(WEB)
    node.issuer = node.daemon()
    node.now += DAY + 1
    late = node.reconcile(WEB)
    assert late != first
    node.ca = CertificateAuthority.open(tmp_path / "other", DOMAIN, clock=lambda: node.now)
    node.issuer = node.daemon()
    moved = node.reconcile(WEB)
    assert moved != late
    verify(moved[WEB.name].chain_pem, node.ca.bundle_pem, now=node.now)


def test_a_directory_that_cannot_be_written_costs_only_the_adoption(node: Node) -> None:
    (node.directory / "svids").write_text("in the way")
    assert node.reconcile(WEB).keys() == {WEB.name}
    assert node.reconcile() == {}


def test_the_private_key_does_not_show_in_logs(node: Node) -> None:
    assert "PRIVATE" not in repr(node.reconcile(WEB))


def test_a_secret_holds_a_chain_with_its_own_key_under_the_address(node: Node) -> None:
    svids = node.reconcile(WEB, WEB6, API)
    made = secrets(svids, node.ca.bundle_pem)
    assert made.keys() == {"10.0.0.1", "fd00::1", "10.0.0.2", TRUST_BUNDLE}
    for name, kept in svids.items():
        secret = Secret.FromString(made[name].SerializeToString())
        assert secret.name == name
        assert secret.tls_certificate.certificate_chain.inline_bytes == kept.chain_pem
        key = serialization.load_pem_private_key(secret.tls_certificate.private_key.inline_bytes, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
    bundle = made[TRUST_BUNDLE]
    assert bundle.name == TRUST_BUNDLE
    assert bundle.validation_context.trusted_ca.inline_bytes == node.ca.bundle_pem
