"""Asks a daemon's xDS servers for the status of their clients (CSDS), as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
from envoy.admin.v3 import config_dump_shared_pb2
from envoy.service.status.v3 import csds_pb2

from penstock.errors import NoDaemonError

_METHOD = "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus"
_PATIENCE = 5.0


def fetch_status(run_dir: Path, sockets: Iterable[Path]) -> list[dict[str, Any]]:
    """Every client at `sockets`, by node id. Raises NoDaemonError if nobody answers there."""
    return [told for socket in sockets for told in _ask(run_dir, socket)]


def _ask(run_dir: Path, socket: Path) -> Iterator[dict[str, Any]]:
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        call = channel.unary_unary(
            _METHOD,
            request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
            response_deserializer=csds_pb2.ClientStatusResponse.FromString,
        )
        try:
            answer = call(csds_pb2.ClientStatusRequest(exclude_resource_contents=True), timeout=_PATIENCE)
        except grpc.RpcError as error:
            raise NoDaemonError(
                f"no daemon answers at {run_dir}", hint="is it running, and is this its --run-dir?"
            ) from error
    for config in sorted(answer.config, key=lambda c: c.node.id):
        yield {
            "node": config.node.id,
            "agent": config.node.user_agent_name,
            "resources": [_resource(item) for item in config.generic_xds_configs],
        }


def _resource(item: Any) -> dict[str, str]:
    return {
        "type": item.type_url.rpartition(".")[2],
        "name": item.name,
        "version": item.version_info,
        "state": csds_pb2.ConfigStatus.Name(item.config_status),
        "client": config_dump_shared_pb2.ClientResourceStatus.Name(item.client_status),
        "error": item.error_state.details,
    }
