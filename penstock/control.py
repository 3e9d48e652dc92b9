"""How the other commands speak with the daemon: JSON over gRPC on a Unix socket that only root may open.

No schema of its own: a call has a name, takes an object and gives an object (or a stream of them). The
daemon and the command line come from one installation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import msgspec

from penstock.errors import NoDaemonError, PenstockError, UsageError

SERVICE = "penstock.Control"
Call = Callable[[dict[str, Any]], Awaitable[Any]]
Stream = Callable[[dict[str, Any]], AsyncIterator[Any]]

_encode = msgspec.json.encode
_decode = msgspec.json.decode


def socket_path(run_dir: Path) -> Path:
    return run_dir / "api.sock"


class ControlServer:
    """Serves `calls` and `streams` by name. A PenstockError reaches the client with its exit code."""

    def __init__(self, path: Path, calls: Mapping[str, Call], streams: Mapping[str, Stream]) -> None:
        self._path = path
        handlers: dict[str, grpc.RpcMethodHandler] = {}
        for name, call in calls.items():
            handlers[name] = grpc.unary_unary_rpc_method_handler(
                self._unary(call), request_deserializer=_decode, response_serializer=_encode
            )
        for name, stream in streams.items():
            handlers[name] = grpc.unary_stream_rpc_method_handler(
                self._streaming(stream), request_deserializer=_decode, response_serializer=_encode
            )
        self._server = grpc.aio.server(
            options=[("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))

    def _unary(self, call: Call) -> Any:
        async def handle(request: dict[str, Any], context: Any) -> Any:
            try:
                return await call(request)
            except PenstockError as e:
                return await context.abort(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    _encode([e.exit_code, str(e), e.hint]).decode(),
                )

        return handle

    def _streaming(self, stream: Stream) -> Any:
        async def handle(request: dict[str, Any], context: Any) -> AsyncIterator[Any]:
            async for item in stream(request):
                yield item

        return handle

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._server.add_insecure_port(f"unix:{self._path}")
        self._path.chmod(0o600)
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace=None)
        self._path.unlink(missing_ok=True)


class ControlClient:
    """The command line's side. Raises NoDaemonError if none answers, or the daemon's own error."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._channel = grpc.insecure_channel(
            f"unix:{socket_path(run_dir)}",
            options=[
                ("grpc.max_receive_message_length", -1),
                # Who waits for a daemon that is just starting should not wait much longer than it takes.
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def wait_for_daemon(self, seconds: float) -> None:
        """Return when a daemon answers. Raises NoDaemonError if none does within `seconds`."""
        try:
            grpc.channel_ready_future(self._channel).result(timeout=seconds)
        except grpc.FutureTimeoutError as e:
            raise self._nobody() from e

    def call(self, name: str, *, timeout: float = 30.0, **arguments: Any) -> Any:
        method = self._channel.unary_unary(
            f"/{SERVICE}/{name}", request_serializer=_encode, response_deserializer=_decode
        )
        try:
            return method(arguments, timeout=timeout)
        except grpc.RpcError as e:
            raise self._error(e) from e

    def stream(self, name: str, **arguments: Any) -> Iterator[Any]:
        method = self._channel.unary_stream(
            f"/{SERVICE}/{name}", request_serializer=_encode, response_deserializer=_decode
        )
        try:
            yield from method(arguments)
        except grpc.RpcError as e:
            raise self._error(e) from e

    def _error(self, error: Any) -> PenstockError:
        if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
            code, message, hint = _decode(error.details())
            found = (UsageError if code == 2 else PenstockError)(message, hint=hint)
            found.exit_code = code
            return found
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return PenstockError("the daemon did not answer in time")
        return self._nobody()

    def _nobody(self) -> NoDaemonError:
        return NoDaemonError(
            f"no daemon answers at {self._run_dir}",
            hint=f"start one: penstock run --run-dir {self._run_dir} --config DIR",
        )
