"""Envoy's bootstrap: where it finds the daemon, and what bounds it. All else comes by xDS.

Both sockets are Unix sockets in the run directory, so that nobody on the network, a workload included,
can speak to the daemon or to Envoy's admin interface.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from penstock.envoy.names import ADS_CLUSTER, ALS_CLUSTER

RE2_PROGRAM_SIZE = 100_000
"""Envoy refuses larger regular expressions; its default, 100, refuses many a useful one."""

_STATS = (
    "cluster_manager.",
    "control_plane.",
    "http.",
    "listener.",
    "listener_manager.",
    "overload.",
    "server.",
    "tcp.",
)
"""Statistics that are kept. Those of clusters would cost more memory than the clusters."""


def admin_socket(run_dir: Path) -> Path:
    """Alone in its directory, the only one that Envoy may write to."""
    return run_dir / "envoy" / "admin" / "admin.sock"


def xds_socket(run_dir: Path) -> Path:
    return run_dir / "xds.sock"


def clients_socket(run_dir: Path) -> Path:
    """Where gRPC programs of the node find Services (`xds:///`); they see nothing of Envoy's."""
    return run_dir / "clients.sock"


def stream_cluster(name: str, socket: Path) -> dict[str, Any]:
    """The gRPC server behind a Unix socket."""
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": str(socket)}}}}]}],
        },
    }


def bootstrap(run_dir: Path, *, node: str, open_files: int) -> str:
    """The bootstrap of the node's Envoy as JSON.

    `node` is the node's name; the run directory holds the daemon's socket (xDS and ALS) and `envoy/`.
    Of `open_files`, two fifths may be downstream connections: each may need another one upstream, and
    listeners need some. Envoy closes what comes beyond that instead of running dry.
    """
    socket = xds_socket(run_dir)
    retry = {"retry_back_off": {"base_interval": "0.05s", "max_interval": "1s"}}
    document = {
        "node": {"id": node, "cluster": "penstock"},
        "admin": {"address": {"pipe": {"path": str(admin_socket(run_dir)), "mode": 0o660}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": ADS_CLUSTER, "retry_policy": retry}}],
            },
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.bootstrap.internal_listener.v3."
                    "InternalListener"
                },
            }
        ],
        "static_resources": {
            "clusters": [stream_cluster(ADS_CLUSTER, socket), stream_cluster(ALS_CLUSTER, socket)]
        },
        "layered_runtime": {
            "layers": [
                {
                    "name": "penstock",
                    "static_layer": {"re2.max_program_size.error_level": RE2_PROGRAM_SIZE},
                }
            ]
        },
        "overload_manager": {
            "resource_monitors": [
                {
                    "name": "envoy.resource_monitors.global_downstream_max_connections",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.resource_monitors."
                        "downstream_connections.v3.DownstreamConnectionsConfig",
                        "max_active_downstream_connections": open_files * 2 // 5,
                    },
                }
            ]
        },
        "stats_config": {
            "stats_matcher": {"inclusion_list": {"patterns": [{"prefix": prefix} for prefix in _STATS]}}
        },
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"
