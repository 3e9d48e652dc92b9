"""`python -m penstock.bench.receiver SOCKET`: takes the sidecars' access logs as a daemon does.

Same code, same budget of entries a second: an arm of sidecars does not pay less for its logs than the node.
"""

from __future__ import annotations

import asyncio
import sys

import grpc

from penstock.observe.als import Budget, access_log_service
from penstock.observe.flows import REQUESTS_PER_SECOND


async def receive(path: str) -> None:
    """Serve until the process ends."""
    server = grpc.aio.server()
    handler = access_log_service(lambda _: None, Budget(REQUESTS_PER_SECOND))
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(receive(sys.argv[1]))
