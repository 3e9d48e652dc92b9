"""What status warns of, before it hurts."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_mtls_issuer import DAY, NOW, WEB, Node

from penstock.mtls import rotation
from penstock.mtls.health import health
from penstock.mtls.rotation import Kind


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def warnings(node: Node, svids: object) -> list[str]:
    found = health(node.ca, node.issuer, svids, node.now)["warnings"]  # type: ignore[arg-type]
    return list(found)


def test_ends_ages_and_failures(node: Node) -> None:
    svids = node.reconcile(WEB)
    node.now += 3600
    found = health(node.ca, node.issuer, svids, node.now)
    assert found["nearest_expiry_workload"] == "default/web"
    assert found["nearest_expiry_seconds"] == DAY - 3600
    assert (found["oldest_age_seconds"], found["lifetime_seconds"]) == (3600, DAY)
    assert found["failures"] == []
    assert (found["ca_link"], found["attempts"], found["rotation_age_seconds"]) == ({}, [], None)
    assert found["jwt_key_age_seconds"] + found["jwt_key_expiry_seconds"] == 30 * DAY
    assert list(found["roots_expiry_seconds"].values()) == [found["root_expiry_seconds"]]
    assert (found["revocations"], found["rotation"]) == (0, "")
    assert health(node.ca, node.issuer, {}, node.now)["nearest_expiry"] is None


def test_a_certificate_that_cannot_be_renewed_is_told_with_the_reason_before_its_end(node: Node) -> None:
    svids = node.reconcile(WEB)
    node.now = NOW + 0.7 * DAY
    with node.failing_ca():
        svids = node.reconcile(WEB)
    (said,) = (text for text in warnings(node, svids) if "default/web" in text)
    assert "not a certificate" in said
    (attempts,) = health(node.ca, node.issuer, svids, node.now)["attempts"]
    assert (attempts["workload"], attempts["failed"]) == ("default/web", 1)
    assert said.endswith("7h12m left")
    assert [f["workload"] for f in health(node.ca, node.issuer, svids, node.now)["failures"]] == [
        "default/web"
    ]


def test_an_intermediate_that_nobody_can_renew(node: Node) -> None:
    (said,) = warnings(node, {})
    assert said.startswith("the CA's intermediate was not renewed: 25d left")


def test_a_root_near_its_end_and_a_rotation_under_way(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.now = node.ca.root.not_valid_after_utc.timestamp() - 80 * DAY
    assert any("root has 80d left" in text for text in warnings(node, {}))
    node.now = NOW
    rotation.begin(tmp_path / "ca", Kind.ROOT, "mesh.test")
    node.ca.reload()
    assert any("rotation of the CA's root is at stage trust" in text for text in warnings(node, {}))
