"""Every warning about manifests that only all of them show: what `validate` says and `status` repeats."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from penstock.explain.conflicts import review_conflicts, rule_problems
from penstock.explain.unreached import review_unreached
from penstock.facts import Facts
from penstock.manifests.document import Document
from penstock.manifests.problem import Problem
from penstock.manifests.review import review
from penstock.routing.review import review_routes
from penstock.routing.review_asked import review_asked
from penstock.routing.review_attach import review_attachments
from penstock.routing.review_edge import review_edge
from penstock.routing.review_expiry import review_expiry
from penstock.routing.review_never import review_never
from penstock.routing.review_traffic import review_traffic


def findings(
    documents: Collection[Document], now: datetime, facts: Facts | None = None
) -> tuple[Problem, ...]:
    """At the time `now` (with a zone), kind of finding by kind of finding.

    `facts` are of these documents, where they are compiled already: to do it again takes long.
    """
    return (
        *review(documents),
        *review_routes(documents),
        *review_never(documents),
        *review_edge(documents),
        *review_asked(documents),
        *review_expiry(documents, now),
        *review_attachments(documents),
        *review_traffic(documents),
        *review_unreached(documents),
        *(rule_problems(facts) if facts is not None else review_conflicts(documents)),
    )
