"""What manifests say and what the Docker Engine says, as one set of objects. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from penstock.manifests.document import Document, ObjectKey
from penstock.manifests.kinds import Workload


def combined(
    files: Mapping[ObjectKey, Document], made: Mapping[ObjectKey, Document]
) -> Mapping[ObjectKey, Document]:
    """Both, where a manifest wins over what was made: by its name, or as the Workload of a container."""
    told = {d.value.spec.container for d in files.values() if isinstance(d.value, Workload)}
    kept = {
        key: document
        for key, document in made.items()
        if not (isinstance(document.value, Workload) and document.value.spec.container in told)
    }
    return {**kept, **files}
