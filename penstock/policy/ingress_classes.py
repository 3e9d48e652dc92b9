"""Which Ingresses are ours: by their class, or by none where the default class is ours.

All of them are served at one address of the node's, as one front door.

Source: Kubernetes API v1.31, IngressClass (ingressclass.kubernetes.io/is-default-class), Ingress; the
annotation kubernetes.io/ingress.class came before the field, and counts where the field is absent.
"""

from __future__ import annotations

from collections.abc import Iterator

from penstock.manifests.document import Document
from penstock.manifests.ingress_kinds import Ingress, IngressClass
from penstock.world import World

CLASS = "penstock"
"""The IngressClass that exists by itself."""
CONTROLLER = "penstock.dev/ingress-controller"
DEFAULT = "ingressclass.kubernetes.io/is-default-class"
OLD_CLASS = "kubernetes.io/ingress.class"
ADDRESS_KEY = "ingresses/4"
"""What the address is allocated for."""


def ours(world: World) -> frozenset[str]:
    """The names of the IngressClasses that are ours."""
    found = {d.key.name: c.spec.controller == CONTROLLER for d, c in world.of_kind(IngressClass)}
    return frozenset(name for name, mine in {CLASS: True, **found}.items() if mine)


def default(world: World) -> str | None:
    """The class of Ingresses that name none: of several defaults the newest."""
    found = [d for d, _ in world.of_kind(IngressClass) if d.metadata.annotations.get(DEFAULT) == "true"]
    return max(found, key=lambda d: (d.since, d.key.name)).key.name if found else None


def class_of(world: World, ingress: Ingress) -> str | None:
    named = ingress.spec.ingress_class_name or ingress.metadata.annotations.get(OLD_CLASS)
    return named or default(world)


def ingresses(world: World) -> Iterator[tuple[Document, Ingress]]:
    """The Ingresses that are ours."""
    classes = ours(world)
    for document, ingress in world.of_kind(Ingress):
        if class_of(world, ingress) in classes:
            yield document, ingress


def stranger(world: World, ingress: Ingress) -> str:
    """Why an Ingress is not ours."""
    named = class_of(world, ingress)
    if named is None:
        return "it names no class, and no IngressClass is the default"
    known = any(d.key.name == named for d, _ in world.of_kind(IngressClass))
    return f"its class {named} is not Penstock's" if known else f"there is no IngressClass {named}"
