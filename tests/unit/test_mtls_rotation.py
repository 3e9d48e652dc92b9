"""The stages of a rotation on disk: what is trusted and who signs at each, and what a crash leaves."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import time
from pathlib import Path

import pytest
from cryptography import x509

from penstock.mtls import certificates, reports, rotate, rotation
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import AuthorityError, ProofError
from penstock.mtls.issuer import Issuer
from penstock.mtls.reports import Report, Reporter
from penstock.mtls.rotation import Kind, Rotation, Stage
from penstock.mtls.show import authorities, remaining
from penstock.plan import SecretWanted

DOMAIN = "mesh.test"
WEB = SecretWanted("10.0.0.1", f"spiffe://{DOMAIN}/ns/default/sa/web", ("default", "web"))


def opened(directory: Path) -> CertificateAuthority:
    return CertificateAuthority.open(directory, DOMAIN)


NOTES = {"issued.log", ".issued.lock", "retired", "jwt", "jwt.json"}
"""What was signed, which grows whatever a rotation does."""


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - NOTES


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in names(directory)}


def openssl_takes(folder: Path, bundle: bytes, chain: bytes) -> bool:
    leaf, *others = x509.load_pem_x509_certificates(chain)
    (folder / "roots.pem").write_bytes(bundle)
    (folder / "leaf.pem").write_bytes(certificates.certificate_pem(leaf))
    (folder / "others.pem").write_bytes(b"".join(map(certificates.certificate_pem, others)))
    command = (
        "openssl verify -x509_strict -purpose sslclient -CAfile roots.pem -untrusted others.pem leaf.pem"
    )
    return subprocess.run(command.split(), cwd=folder, capture_output=True, check=False).returncode == 0


class Walk:
    """A CA taken through a rotation; at each stage a daemon that has followed all the way, and a new one."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.directory = folder, folder / "ca"
        self.follower = opened(self.directory)
        self.issuer = Issuer(self.follower)
        self.chains: list[bytes] = [self.leaf()]
        self.bundles = [self.follower.bundle_pem]

    def leaf(self) -> bytes:
        return self.issuer.reconcile([WEB], time.time())[WEB.name].chain_pem

    def step(self) -> None:
        """Everybody trusts what was shown at the stage before, and shows what was trusted then."""
        self.follower.reload()
        fresh = opened(self.directory)
        assert fresh.bundle_pem == self.follower.bundle_pem
        assert fresh.intermediate == self.follower.intermediate
        assert openssl_takes(self.folder, fresh.bundle_pem, self.chains[-1])
        chain = self.leaf()
        assert openssl_takes(self.folder, self.bundles[-1], chain)
        assert openssl_takes(self.folder, fresh.bundle_pem, chain)
        assert self.issuer.moved() == (1, 1)
        self.chains.append(chain)
        self.bundles.append(fresh.bundle_pem)


@pytest.fixture
def walk(tmp_path: Path) -> Walk:
    return Walk(tmp_path)


def test_a_root_goes_by_three_stages_that_always_overlap(walk: Walk) -> None:
    old = walk.follower.root
    now: Rotation | None = rotation.begin(walk.directory, Kind.ROOT, DOMAIN)
    stages = []
    while now is not None:
        stages.append(now.stage)
        walk.step()
        now = rotation.advance(walk.directory, now)
    walk.step()
    assert stages == [Stage.TRUST, Stage.SIGN, Stage.DROP]
    assert [len(x509.load_pem_x509_certificates(bundle)) for bundle in walk.bundles] == [1, 2, 2, 1, 1]
    changed = [a != b for a, b in zip(walk.chains, walk.chains[1:], strict=False)]
    assert changed == [False, True, False, False]
    assert opened(walk.directory).root != old
    assert not openssl_takes(walk.folder, walk.bundles[0], walk.chains[-1])
    assert names(walk.directory) == {".lock", "root.crt", "root.key", "intermediate.crt", "intermediate.key"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in walk.directory.glob("*.key")} == {0o600}


@pytest.mark.parametrize("at", [Stage.TRUST, Stage.SIGN])
def test_the_way_back_overlaps_too(walk: Walk, at: Stage) -> None:
    before = contents(walk.directory)
    now: Rotation | None = rotation.begin(walk.directory, Kind.ROOT, DOMAIN)
    assert now is not None
    walk.step()
    if at is Stage.SIGN:
        now = rotation.advance(walk.directory, now)
        walk.step()
    now = rotation.roll_back(walk.directory)
    assert rotation.roll_back(walk.directory) == now
    while now is not None:
        walk.step()
        now = rotation.advance(walk.directory, now)
    walk.step()
    assert contents(walk.directory) == before
    assert openssl_takes(walk.folder, walk.bundles[0], walk.chains[-1])


def test_an_intermediate_goes_by_one_stage_under_the_same_root(walk: Walk) -> None:
    root, old = walk.follower.root, walk.follower.intermediate
    now: Rotation | None = rotation.begin(walk.directory, Kind.INTERMEDIATE, DOMAIN)
    assert now is not None
    assert now.ahead == (Stage.TRUST, Stage.SIGN)
    walk.step()
    now = rotation.advance(walk.directory, now)
    assert now is not None
    walk.step()
    assert rotation.advance(walk.directory, now) is None
    walk.step()
    assert walk.follower.root == root
    assert walk.follower.intermediate != old
    assert len(set(walk.bundles)) == 1


def test_too_late_and_too_early(tmp_path: Path) -> None:
    opened(tmp_path)
    with pytest.raises(AuthorityError, match="nothing is being rotated"):
        rotation.roll_back(tmp_path)
    now = rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    with pytest.raises(AuthorityError, match="under way, at stage trust"):
        rotation.begin(tmp_path, Kind.INTERMEDIATE, DOMAIN)
    sign = rotation.advance(tmp_path, now)
    assert sign is not None
    assert rotation.advance(tmp_path, now) == sign, "a proof of an earlier stage moves nothing"
    rotation.advance(tmp_path, sign)
    with pytest.raises(AuthorityError, match="too late"):
        rotation.roll_back(tmp_path)


@pytest.mark.parametrize("moved", range(5))
def test_a_crash_while_files_are_moved_into_place_is_completed_by_the_next(
    tmp_path: Path, moved: int
) -> None:
    opened(tmp_path)
    now = rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    new = {path.name: path.read_bytes() for path in (tmp_path / "next").iterdir()}
    state = (tmp_path / "rotation.json").read_text()
    (tmp_path / "rotation.json").write_text(state.replace(now.stage, "finish"))
    for name in ["root.key", "root.crt", "intermediate.key", "intermediate.crt"][:moved]:
        (tmp_path / "next" / name).replace(tmp_path / name)
    ca = opened(tmp_path)
    assert certificates.certificate_pem(ca.root) == new["root.crt"]
    assert {name: (tmp_path / name).read_bytes() for name in new} == new
    assert names(tmp_path) == {*new, ".lock"}


def test_what_a_crash_left_before_the_first_stage_is_made_anew(tmp_path: Path) -> None:
    ca = opened(tmp_path)
    (tmp_path / "next").mkdir()
    (tmp_path / "next/root.key").write_text("half")
    ca.reload()
    assert ca.rotation is None
    assert len(authorities(tmp_path, time.time())["certificates"]) == 2
    rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    ca.reload()
    assert len(ca.roots) == 2


def test_a_damaged_state_is_refused_and_changes_nothing_in_a_running_ca(tmp_path: Path) -> None:
    ca = opened(tmp_path)
    rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    (tmp_path / "rotation.json").write_text("{")
    with pytest.raises(AuthorityError, match="damaged"):
        ca.reload()
    assert ca.rotation is None
    with pytest.raises(AuthorityError, match="damaged"):
        opened(tmp_path)


def test_an_intermediate_needs_the_roots_key(tmp_path: Path) -> None:
    opened(tmp_path)
    (tmp_path / "root.key").unlink()
    with pytest.raises(AuthorityError, match=r"root\.key is not there"):
        rotation.begin(tmp_path, Kind.INTERMEDIATE, DOMAIN)
    assert rotation.current(tmp_path) is None
    rotation.begin(tmp_path, Kind.ROOT, DOMAIN)


# --- proof ----------------------------------------------------------------------------------------------


def proof(node: str, now: Rotation, **more: object) -> Report:
    return Report(node, now.id, now.stage, **{"proven": True, "reason": "", **more})  # type: ignore[arg-type]


def test_a_node_is_known_before_it_reports_and_after_it_ends(tmp_path: Path) -> None:
    opened(tmp_path)
    now = rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    reporter = Reporter.open(tmp_path, "a/b")
    assert reports.holding(reports.read(tmp_path), now) == {"a/b": "its daemon has not taken up this stage"}
    with pytest.raises(AuthorityError, match="named a/b, too"):
        Reporter.open(tmp_path, "a/b")
    with pytest.raises(AuthorityError, match="runs"):
        reports.forget(tmp_path, "a/b")
    reporter.write(proof("a/b", now, proven=False, reason="its Envoy is not connected"))
    assert reports.holding(reports.read(tmp_path), now) == {"a/b": "its Envoy is not connected"}
    reporter.close()
    assert reports.holding(reports.read(tmp_path), now) == {"a/b": "its daemon does not run"}
    reporter = Reporter.open(tmp_path, "a/b")
    reporter.write(proof("a/b", now))
    reporter.close()
    assert reports.holding(reports.read(tmp_path), now) == {}, "its Envoy goes on with what it acknowledged"
    sign = rotation.advance(tmp_path, now)
    assert sign is not None
    assert reports.holding(reports.read(tmp_path), sign) == {"a/b": "its daemon does not run"}
    reports.forget(tmp_path, "a/b")
    assert reports.read(tmp_path) == ()
    with pytest.raises(AuthorityError, match="no node"):
        reports.forget(tmp_path, "a/b")


def test_a_proof_of_another_rotation_is_none(tmp_path: Path) -> None:
    opened(tmp_path)
    first = rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    with_proof = Reporter.open(tmp_path, "node")
    with_proof.write(proof("node", first))
    back = rotation.roll_back(tmp_path)
    assert rotation.advance(tmp_path, back) is None
    second = rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    assert list(reports.holding(reports.read(tmp_path), second)) == ["node"]
    (tmp_path / "nodes/node.json").write_text("{")
    assert list(reports.holding(reports.read(tmp_path), second)) == ["node"]
    with_proof.close()


async def test_the_driver_waits_for_proof_and_not_for_time(tmp_path: Path) -> None:
    opened(tmp_path)
    now = rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    reporter = Reporter.open(tmp_path, "node")
    with pytest.raises(
        ProofError, match=r"stage trust is not proven within 0\.1 s: node: its daemon has not"
    ):
        await rotate.drive(tmp_path, now, within=0.1, tell=lambda *_: None)
    assert rotation.current(tmp_path) == now
    told = []

    def answer(stage: Rotation, states: tuple[reports.NodeState, ...]) -> None:
        told.append(stage.stage)
        if not states[0].report.proves(stage):
            asyncio.get_running_loop().call_soon(reporter.write, proof("node", stage))

    began = time.monotonic()
    await rotate.drive(tmp_path, now, within=30, tell=answer)
    assert time.monotonic() - began < rotate.LOOK, "each proof was seen when it came"
    assert list(dict.fromkeys(told)) == [Stage.TRUST, Stage.SIGN, Stage.DROP]
    assert rotation.current(tmp_path) is None
    reporter.close()


async def test_the_driver_stops_when_somebody_turns_the_rotation_round(tmp_path: Path) -> None:
    opened(tmp_path)
    now = rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    reporter = Reporter.open(tmp_path, "node")

    def turn(*_: object) -> None:
        asyncio.get_running_loop().call_soon(rotation.roll_back, tmp_path)

    with pytest.raises(AuthorityError, match="turned this rotation round"):
        await rotate.drive(tmp_path, now, within=10, tell=turn)
    reporter.close()


def test_show_tells_which_is_trusted_and_which_signs(tmp_path: Path) -> None:
    opened(tmp_path)
    now: Rotation | None = rotation.begin(tmp_path, Kind.ROOT, DOMAIN)
    seen = []
    while now is not None:
        found = authorities(tmp_path, time.time())["certificates"]
        seen.append([c["role"] for c in found if c["trusted"] or c["signs"]])
        now = rotation.advance(tmp_path, now)
    assert seen == [
        ["root", "intermediate", "new root"],
        ["root", "new root", "new intermediate"],
        ["new root", "new intermediate"],
    ]
    with pytest.raises(AuthorityError, match="no CA"):
        authorities(tmp_path / "other", time.time())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (3600, "1h"), (86399, "23h59m"), (90061, "1d1h"), (-60, "over since 1m")],
)
def test_time_spans_for_people(seconds: float, text: str) -> None:
    assert remaining(seconds) == text
