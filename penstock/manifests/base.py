"""What every typed kind is made of: closed, immutable parts, and the metadata of an object."""

from __future__ import annotations

from typing import Any

import msgspec


class Kind(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True):
    """Base of every typed part of a manifest: closed (unknown fields are errors) and immutable."""


Labels = dict[str, str]


class ObjectMeta(Kind, frozen=True):
    """metadata. Fields that an API server writes are accepted and ignored."""

    name: str
    namespace: str = "default"
    labels: Labels = {}
    annotations: Labels = {}
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    finalizers: list[str] = []
    generate_name: str | None = None
    generation: int | None = None
    managed_fields: list[Any] = []
    owner_references: list[Any] = []
    resource_version: str | None = None
    self_link: str | None = None
    uid: str | None = None
