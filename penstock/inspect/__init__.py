"""What `explain` and the commands that look into the kernel ask the daemon: one call for each.

Everything is read from the pinned maps when it is asked for. Names and origins come from the last
compilation, which may be a moment ahead of the maps; it never speaks in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from penstock.diff import Side, differences, planned
from penstock.errors import PenstockError
from penstock.explain import Question, explain, plain
from penstock.facts import Facts
from penstock.inspect.live import LiveKernel
from penstock.inspect.views import Views
from penstock.manifests.store import Store
from penstock.plan import Plan
from penstock.redirect.tables import Tables

CALLS = (
    "endpoints",
    "endpoint",
    "identities",
    "services",
    "policies",
    "policy",
    "kernel_policy",
    "maps",
    "conntrack",
)
"""Methods of Views, by the name of the call."""


class Inspector:
    """Answers by the last compilation. `serving` tells whether Envoy is there."""

    def __init__(self, tables: Tables, serving: Callable[[], bool]) -> None:
        self._tables, self._serving = tables, serving
        self._last: tuple[Facts, Plan] | None = None

    def update(self, facts: Facts, plan: Plan) -> None:
        """What was applied last."""
        self._last = facts, plan

    def _now(self) -> tuple[Facts, Plan]:
        if self._last is None:
            raise PenstockError("nothing was applied yet", hint="penstock status --wait 10 waits for it")
        return self._last

    def explain(self, request: dict[str, Any], recorded: Sequence[Mapping[str, Any]] = ()) -> Any:
        """`recorded` is what the DNS proxy remembers. Raises UnknownPartyError."""
        facts, plan = self._now()
        question = msgspec.convert(request["question"], Question)
        kernel = LiveKernel(self._tables, plan, serving=self._serving(), recorded=recorded)
        return plain(explain(question, facts, plan, kernel))

    def diff(self, request: dict[str, Any]) -> Any:
        """What the manifests of `request` (file → text) would change. Raises AllocationError."""
        before = Side(*self._now())
        result = Store().apply(request["texts"], request["since"])
        after = planned(result.documents, before.world.node, before)
        return differences(before, after, result.problems)

    def look(self, call: str, request: dict[str, Any]) -> Any:
        """The view of that name. Raises UnknownPartyError."""
        return getattr(Views(self._tables, *self._now()), call)(**request)
