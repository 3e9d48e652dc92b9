"""Selectors: what they mean, and whom they can mean at all."""

from __future__ import annotations

import msgspec
import pytest

from penstock.manifests.kinds import LabelSelector
from penstock.policy.labels import HOST, WORLD, predicate, reserved_labels, workload_labels

WEB = workload_labels("default", "web", {"app": "web", "tier": "front"}, {})
ALIEN = workload_labels("other", "web", {"app": "web"}, {})


def _selects(selector: object, labels: object, within: str | None = "default") -> bool:
    return predicate(msgspec.convert(selector, LabelSelector), within=within)(labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("selector", "selected"),
    [
        ({}, True),
        ({"matchLabels": {"app": "web"}}, True),
        ({"matchLabels": {"app": "web", "tier": "back"}}, False),
        ({"matchLabels": {"k8s:app": "web"}}, True),
        ({"matchLabels": {"any:app": "web"}}, True),
        ({"matchLabels": {"container:app": "web"}}, False),
        ({"matchLabels": {"io.cilium.k8s.policy.serviceaccount": "web"}}, True),
        ({"matchLabels": {"k8s:io.cilium.k8s.policy.serviceaccount": "db"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["db", "web"]}]}, True),
        ({"matchExpressions": [{"key": "nope", "operator": "In", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, False),
        ({"matchExpressions": [{"key": "nope", "operator": "NotIn", "values": ["web"]}]}, True),
        ({"matchExpressions": [{"key": "any:tier", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "nope", "operator": "Exists"}]}, False),
        ({"matchExpressions": [{"key": "nope", "operator": "DoesNotExist"}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, False),
        (
            {
                "matchLabels": {"app": "web"},
                "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}],
            },
            False,
        ),
    ],
)
def test_selectors(selector: object, selected: bool) -> None:
    assert _selects(selector, WEB) is selected


def test_a_selector_means_its_own_namespace() -> None:
    assert not _selects({}, ALIEN)
    assert not _selects({"matchLabels": {"app": "web"}}, ALIEN)
    assert _selects({"matchLabels": {"app": "web"}}, ALIEN, within=None)


@pytest.mark.parametrize(
    "selector",
    [
        {"matchLabels": {"k8s:io.kubernetes.pod.namespace": "other"}},
        {"matchLabels": {"io.kubernetes.pod.namespace": "other"}},
        {"matchExpressions": [{"key": "k8s:io.kubernetes.pod.namespace", "operator": "Exists"}]},
    ],
)
def test_unless_it_names_one(selector: object) -> None:
    assert _selects(selector, ALIEN)


def test_the_reserved_are_selected_only_by_name() -> None:
    world, host = reserved_labels(WORLD), reserved_labels(HOST)
    for selector in ({}, {"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}):
        assert not _selects(selector, world)
    assert _selects({"matchLabels": {"reserved:host": ""}}, host)
    assert not _selects({"matchLabels": {"reserved:host": ""}}, world)
    assert not _selects({"matchLabels": {"reserved:host": ""}}, WEB)
