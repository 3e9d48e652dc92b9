"""Client status discovery: what each client has of what it should have, as it told us itself.

The state of a resource is exactly the table of acknowledgements (`Watch.status`), never a guess from
versions. One answer holds every client that the matchers select; streams of one node are one client. Keys
do not leave in it: of secrets it tells the state, not the content.

Source: envoy/service/status/v3/csds.proto, envoy/admin/v3/config_dump_shared.proto.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from envoy.admin.v3 import config_dump_shared_pb2
from envoy.service.status.v3 import csds_pb2
from google.protobuf import any_pb2, struct_pb2

from penstock.xds.errors import ProtocolError
from penstock.xds.session import Session
from penstock.xds.snapshot import Resource, TypeUrl
from penstock.xds.watch import ResourceStatus, SyncState, Watch

_Client = config_dump_shared_pb2.ClientResourceStatus
_STATES = {
    SyncState.NOT_SENT: (csds_pb2.ConfigStatus.NOT_SENT, _Client.REQUESTED),
    SyncState.STALE: (csds_pb2.ConfigStatus.STALE, _Client.REQUESTED),
    SyncState.SYNCED: (csds_pb2.ConfigStatus.SYNCED, _Client.ACKED),
    SyncState.ERROR: (csds_pb2.ConfigStatus.ERROR, _Client.NACKED),
}


def client_status(sessions: Iterable[Session], request: Any) -> csds_pb2.ClientStatusResponse:
    """The answer to a ClientStatusRequest. Without matchers it tells of every client.

    Raises ProtocolError for a matcher that is not supported.
    """
    answer = csds_pb2.ClientStatusResponse()
    clients: dict[str, Any] = {}
    for session in sessions:
        if session.node is None or not _selected(session.node, request.node_matchers):
            continue
        config = clients.get(session.node_id)
        if config is None:
            config = clients[session.node_id] = answer.config.add(node=session.node)
        for watch in session.watched():
            for status in _statuses(watch, session):
                contents = not request.exclude_resource_contents and watch.type_url != TypeUrl.SDS
                _tell(config, watch, session, status, contents=contents)
    return answer


def _statuses(watch: Watch, session: Session) -> Iterator[ResourceStatus]:
    """What concerns this client: what it watches or holds, whether it exists or not."""
    found = {status.name: status for status in watch.status(session.snapshot)}
    for name in sorted(watch.names - found.keys()):
        found[name] = ResourceStatus(name, "", "", SyncState.NOT_SENT)
    for name, status in sorted(found.items()):
        if watch.wants(name) or status.acked:
            yield status


def _content(item: Resource) -> any_pb2.Any:
    return any_pb2.Any(type_url=item.type_url, value=item.body)


def _tell(config: Any, watch: Watch, session: Session, status: ResourceStatus, *, contents: bool) -> None:
    told = config.generic_xds_configs.add(
        type_url=watch.type_url, name=status.name, version_info=status.acked
    )
    told.config_status, told.client_status = _STATES[status.state]
    wanted = session.snapshot.get(watch.type_url, status.name)
    if wanted is None and not status.acked:
        told.client_status = _Client.DOES_NOT_EXIST
    good = watch.last_good(status.name)
    in_force = wanted if wanted is not None and wanted.version == status.acked else good
    if contents and in_force is not None and in_force.version == status.acked:
        told.xds_config.CopyFrom(_content(in_force))
    if status.state is SyncState.ERROR:
        told.error_state.details = status.error
        told.error_state.version_info = status.version
        if contents and wanted is not None:
            told.error_state.failed_configuration.CopyFrom(_content(wanted))


# --- which clients are meant ------------------------------------------------------------------------------


def _selected(node: Any, matchers: Any) -> bool:
    return not matchers or any(_matches(node, matcher) for matcher in matchers)


def _matches(node: Any, matcher: Any) -> bool:
    if matcher.HasField("node_id") and not _string(node.id, matcher.node_id):
        return False
    return all(_metadata(node.metadata, m) for m in matcher.node_metadatas)


def _string(text: str, matcher: Any) -> bool:
    kind = matcher.WhichOneof("match_pattern")
    if kind not in _PATTERNS:
        # Python's regular expressions may take for ever, and both sides of it would be the client's.
        raise ProtocolError(f"a node cannot be matched by {kind}, only by {', '.join(_PATTERNS)}")
    pattern = getattr(matcher, kind)
    if matcher.ignore_case:
        text, pattern = text.lower(), pattern.lower()
    return _PATTERNS[kind](text, pattern)


_PATTERNS: Mapping[str, Callable[[str, str], bool]] = {
    "exact": operator.eq,
    "prefix": str.startswith,
    "suffix": str.endswith,
    "contains": operator.contains,
}


def _metadata(metadata: Any, matcher: Any) -> bool:
    value: Any = metadata
    for segment in matcher.path:
        if not isinstance(value, struct_pb2.Struct) or segment.key not in value:
            return False
        value = value[segment.key]
    kind = matcher.value.WhichOneof("match_pattern")
    if kind == "string_match":
        return isinstance(value, str) and _string(value, matcher.value.string_match)
    if kind == "bool_match":
        return isinstance(value, bool) and value == matcher.value.bool_match
    if kind != "present_match":
        raise ProtocolError(f"metadata of a node cannot be matched by {kind}")
    return bool(matcher.value.present_match)
