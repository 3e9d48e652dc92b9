"""Envoy as a process: unprivileged, outliving its starter, adopted, started again, gone when told so."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from penstock.envoy.errors import EnvoyAdminError, EnvoyStartError
from penstock.envoy.process import UID, EnvoyProcess, base_id

CAP_NET_BIND_SERVICE, CAP_NET_ADMIN = 1 << 10, 1 << 12
Make = Callable[..., EnvoyProcess]


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    """Makes EnvoyProcess objects for one run directory, as successive daemons would."""
    assert os.geteuid() == 0, "this test starts Envoy as another user: run it as root"
    with tempfile.TemporaryDirectory(prefix="ptenvoy-") as directory:
        os.chmod(directory, 0o755)
        made: list[EnvoyProcess] = []

        def make(**options: object) -> EnvoyProcess:
            given = {"node": "n1", "concurrency": 1, **options}
            made.append(EnvoyProcess(Path(directory), **given))  # type: ignore[arg-type]
            return made[-1]

        yield make
        for envoy in made:
            await envoy.stop(grace=0)


def _status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: values.split() for name, _, values in (line.partition(":") for line in lines)}


def _segments(envoy: EnvoyProcess) -> list[Path]:
    return list(Path("/dev/shm").glob(f"envoy_shared_memory_{base_id(envoy.run_dir)}*"))


async def test_it_runs_as_nobody_with_two_capabilities(make: Make) -> None:
    envoy = make()
    assert await envoy.start() is False
    assert envoy.pid is not None
    status = _status(envoy.pid)
    assert status["Name"] == ["envoy"]
    assert set(status["Uid"] + status["Gid"]) == {str(UID)}
    for kind in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(status[kind][0], 16) == CAP_NET_ADMIN | CAP_NET_BIND_SERVICE, kind
    assert status["NoNewPrivs"] == ["1"]
    owners = {path.name: path.lstat().st_uid for path in (envoy.run_dir / "envoy").rglob("*")}
    assert {name for name, owner in owners.items() if owner == UID} == {"admin", "admin.sock"}
    assert (envoy.run_dir / "envoy").stat().st_uid == 0
    # A session of its own: a signal to the daemon's terminal does not reach it.
    assert os.getsid(envoy.pid) == envoy.pid


async def test_the_next_daemon_adopts_it(make: Make) -> None:
    first, second = make(), make()
    await first.start()
    assert await second.start() is True
    assert second.pid == first.pid
    ended = asyncio.create_task(second.wait_exit())
    await first.stop()
    await asyncio.wait_for(ended, 2)


async def test_it_outlives_the_daemon(make: Make) -> None:
    envoy = make()
    run_dir = envoy.run_dir
    script = (
        "import asyncio, pathlib\n"
        "from penstock.envoy.process import EnvoyProcess\n"
        f"e = EnvoyProcess(pathlib.Path({str(run_dir)!r}), node='n1', concurrency=1)\n"
        "asyncio.run(e.start())\n"
        "print(e.pid)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    daemon = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert await envoy.start() is True
    assert envoy.pid == int(daemon.stdout)


async def test_one_with_another_bootstrap_is_replaced(make: Make) -> None:
    first, second = make(), make(node="n2")
    await first.start()
    pid = first.pid
    assert await second.start() is False
    assert second.pid != pid
    assert (await second.admin.server_info())["node"]["id"] == "n2"
    await asyncio.wait_for(first.wait_exit(), 2)


async def test_it_is_started_again_when_it_dies(make: Make) -> None:
    envoy = make()
    starts: asyncio.Queue[tuple[bool, int | None]] = asyncio.Queue()
    keeper = asyncio.create_task(envoy.keep(lambda adopted: starts.put_nowait((adopted, envoy.pid))))
    async with asyncio.timeout(10):
        adopted, first = await starts.get()
        assert not adopted
        assert first is not None
        os.kill(first, signal.SIGKILL)
        adopted, second = await starts.get()
    assert not adopted
    assert second != first
    keeper.cancel()
    await asyncio.wait([keeper])
    # Whoever kept it goes; Envoy stays.
    assert await make().start() is True


async def test_stop_leaves_nothing_and_may_be_said_twice(make: Make) -> None:
    envoy, other = make(), make()
    await envoy.start()
    assert _segments(envoy)
    # The one who stops it need not have started it.
    await other.stop()
    await asyncio.wait_for(envoy.wait_exit(), 1)
    assert not _segments(envoy)
    left = {path.name for path in (envoy.run_dir / "envoy").rglob("*")}
    assert left == {"admin", "bootstrap.json", "envoy.log"}
    await other.stop()
    with pytest.raises(EnvoyAdminError):
        await envoy.admin.server_info()


async def test_somebody_elses_process_in_the_pid_file_is_left_alone(make: Make) -> None:
    envoy = make()
    stranger = await asyncio.to_thread(subprocess.Popen, ["sleep", "60"])
    try:
        (envoy.run_dir / "envoy").mkdir()
        (envoy.run_dir / "envoy" / "envoy.pid").write_text(f"{stranger.pid}\n")
        await envoy.stop()
        assert stranger.poll() is None
        assert await envoy.start() is False
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


async def test_one_that_does_not_start_says_why(make: Make) -> None:
    with pytest.raises(EnvoyStartError, match="failed to execute"):
        await make(binary="/no/such/envoy").start()


async def test_statistics_are_few_and_readable(make: Make) -> None:
    envoy = make()
    await envoy.start()
    assert (await envoy.admin.stats("server.concurrency"))["server.concurrency"] == 1
    assert not await envoy.admin.stats("cluster.")
    assert set(await envoy.admin.clusters()) == {"ads", "als"}
