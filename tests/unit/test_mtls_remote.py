"""A CA that is served and the nodes that use it, over real mTLS on loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509

from penstock.mtls import certificates, jwt, reports, rotation, tokens, wire
from penstock.mtls.ca import CertificateAuthority
from penstock.mtls.errors import AuthorityError
from penstock.mtls.placement import Placement
from penstock.mtls.remote import RemoteAuthority
from penstock.mtls.reports import Report
from penstock.mtls.rotation import Kind, Stage
from penstock.mtls.serve import AuthorityServer
from penstock.mtls.tokens import Grant
from penstock.mtls.verify import verify

DOMAIN = "mesh.test"
HOUR = timedelta(hours=1)
PLACED = Placement(
    {"default/web": ("web", "node-a"), "default/api": ("api", "node-b"), "default/any": ("any", None)}
)


def spiffe_id(account: str, namespace: str = "default") -> str:
    return f"spiffe://{DOMAIN}/ns/{namespace}/sa/{account}"


def csr() -> bytes:
    return certificates.signing_request(certificates.new_key())


async def until(what: str, question: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not question():  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # between two looks at what tells nobody


class Site:
    """A CA directory and its server, which may be away."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = CertificateAuthority.open(folder / "ca", DOMAIN)
        self.port = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._server: AuthorityServer | None = None

    async def up(self) -> None:
        ca = CertificateAuthority.open(self.folder / "ca", DOMAIN)
        self._server = AuthorityServer(ca, f"127.0.0.1:{self.port}", lambda: PLACED)
        await self._server.start()
        self.port = self._server.port
        self._running = asyncio.create_task(self._server.run())

    async def down(self) -> None:
        assert self._server
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await self._server.stop()

    def counted(self) -> dict[str, Any]:
        assert self._server
        return self._server.counted()

    def token(self, node: str, *allow: str, lifetime: timedelta = HOUR, name: str = "") -> Path:
        made = tokens.make(self.ca, Grant(node, allow), lifetime, time.time())
        file = self.folder / (name or f"{node}.token")
        file.write_text(made.text())
        return file

    def remote(self, node: str, token: Path | None, folder: str = "") -> RemoteAuthority:
        where = self.folder / (folder or node)
        return RemoteAuthority.open(f"127.0.0.1:{self.port}", node, where, DOMAIN, token)

    @asynccontextmanager
    async def node(self, name: str, token: Path | None, folder: str = "") -> AsyncIterator[RemoteAuthority]:
        remote = self.remote(name, token, folder)
        running = asyncio.create_task(remote.run())
        following = asyncio.create_task(follow(remote))
        try:
            yield remote
        finally:
            for task in (running, following):
                task.cancel()
            await asyncio.gather(running, following, return_exceptions=True)


async def follow(remote: RemoteAuthority) -> None:
    async for _ in remote.changes():
        remote.reload()


def connected(remote: RemoteAuthority) -> bool:
    return not any("does not answer" in why for why in remote.warnings(time.time()))


async def sign(remote: RemoteAuthority, account: str, owner: str = "", namespace: str = "default") -> bytes:
    wanted = spiffe_id(account, namespace)
    owner = owner or f"{namespace}/{account}"
    return await asyncio.to_thread(remote.sign, csr(), wanted, HOUR, owner=owner)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    await made.up()
    yield made
    with suppress(RuntimeError):
        await made.down()


async def test_a_node_joins_and_gets_certificates_for_what_runs_on_it(site: Site) -> None:
    async with site.node("node-a", site.token("node-a")) as node:
        await until("it has joined", lambda: connected(node))
        chain = await sign(node, "web")
        assert str(verify(chain, node.bundle_pem, now=time.time())) == spiffe_id("web")
        assert node.state == site.ca.state
        for account, why in (
            ("api", "default/api runs on node-b, not on node-a"),
            ("any", "names no node"),
            ("ghost", "no manifest tells of default/ghost"),
        ):
            with pytest.raises(AuthorityError, match=why):
                await sign(node, account)
        with pytest.raises(AuthorityError, match="is of the service account web, not admin"):
            await sign(node, "admin", "default/web")
        with pytest.raises(AuthorityError, match="not of the namespace"):
            await sign(node, "web", "other/web", "default")
        assert await sign(node, "ingress", namespace="penstock")
        mode = (site.folder / "node-a/node.pem").stat().st_mode & 0o777
        assert mode == 0o600


async def test_a_token_may_allow_more(site: Site) -> None:
    async with site.node("node-c", site.token("node-c", "prod/*")) as node:
        await until("it has joined", lambda: connected(node))
        assert await sign(node, "anything", namespace="prod")
        with pytest.raises(AuthorityError, match="no manifest"):
            await sign(node, "anything", namespace="prod2")


async def test_a_token_is_for_one_key_one_node_and_a_while(site: Site, tmp_path: Path) -> None:
    token = site.token("node-a")
    with pytest.raises(AuthorityError, match="is for the node node-a, not node-b"):
        site.remote("node-b", token)
    async with site.node("node-a", token) as node:
        await until("it has joined", lambda: connected(node))
    async with site.node("node-a", token, "thief") as thief:
        await until("refused", lambda: "used before, for another key" in str(thief.warnings(time.time())))
    # The same key may ask again: its answer may have been lost.
    (tmp_path / "again").mkdir()
    key = certificates.new_key()
    (tmp_path / "again/join.key").write_bytes(certificates.key_pem(key))
    second = site.token("node-a", name="second")
    for _ in range(2):
        async with site.node("node-a", second, "again") as node:
            await until("it has joined", lambda node=node: connected(node))
        (tmp_path / "again/node.pem").unlink()
        (tmp_path / "again/join.key").write_bytes(certificates.key_pem(key))
    over, made = site.token("node-a", lifetime=timedelta(seconds=1), name="over"), time.time()
    await until("it is over", lambda: time.time() > made + 1)
    async with site.node("node-a", over, "late") as late:
        await until("refused", lambda: "was not asked yet" not in str(late.warnings(time.time())))
        assert not connected(late)


async def test_nobody_else_is_served(site: Site, tmp_path: Path) -> None:
    """A workload's certificate opens no door, nor does a join token's but that of joining."""
    key = certificates.new_key()
    chain = site.ca.sign(certificates.signing_request(key), spiffe_id("web"), HOUR, owner="default/web")
    token = tokens.read(site.token("node-a"))
    before = site.counted()
    cases = [
        (certificates.key_pem(key), chain, "neither a node nor about to join"),
        (token.key.encode(), token.chain.encode(), "good for joining only"),
    ]
    for key_pem, chain_pem, why in cases:
        credentials = grpc.ssl_channel_credentials(site.ca.bundle_pem, key_pem, chain_pem)
        options = [("grpc.ssl_target_name_override", wire.HOST_NAME)]
        async with grpc.aio.secure_channel(f"127.0.0.1:{site.port}", credentials, options=options) as channel:
            call = channel.unary_unary(f"/{wire.SERVICE}/Sign", request_serializer=wire.encode)
            with pytest.raises(grpc.aio.AioRpcError, match=why):
                await call(wire.SignRequest(csr().decode(), spiffe_id("web"), "default/web", 60), timeout=5)
    assert site.counted()["answers"]["refused"] == before["answers"]["refused"] + len(cases)
    assert 0 < site.counted()["server_expiry_seconds"] <= 86400
    bare = grpc.ssl_channel_credentials(site.ca.bundle_pem)
    async with grpc.aio.secure_channel(f"127.0.0.1:{site.port}", bare, options=options) as channel:
        call = channel.unary_unary(f"/{wire.SERVICE}/Sign", request_serializer=wire.encode)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(wire.SignRequest("", "", "", 1), timeout=2)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_with_the_ca_away_a_node_starts_with_what_it_has_and_comes_back(site: Site) -> None:
    async with site.node("node-a", site.token("node-a")) as node:
        await until("it has joined", lambda: connected(node))
        link = node.link(time.time())
        assert (link["connected"], link["silent"]) == (1, 0)
        assert 6.9 * 86400 < link["node_certificate"] <= 7 * 86400
        await site.down()
        await until("it is missed", lambda: not connected(node))
        assert node.link(time.time() + 5)["connected"] == 0
        assert node.link(time.time() + 5)["silent"] >= 5
        with pytest.raises(AuthorityError, match="does not answer"):
            await sign(node, "web")
        assert node.bundle_pem == site.ca.bundle_pem
    async with site.node("node-a", None) as again:
        assert again.state == site.ca.state
        await site.up()
        await until("it is back", lambda: connected(again))
        assert await sign(again, "web")


async def test_a_rotation_waits_for_the_nodes_and_takes_their_own_certificates_along(site: Site) -> None:
    directory = site.ca.directory
    async with site.node("node-a", site.token("node-a")) as node:
        await until("it has joined", lambda: connected(node))
        now: rotation.Rotation | None = rotation.begin(directory, Kind.ROOT, DOMAIN)
        stages = []
        while now is not None:
            stages.append(now.stage)
            assert set(reports.holding(reports.read(directory), now)) == {"node-a"}
            await until("it has taken the stage up", lambda now=now: node.rotation == now)
            await until("its own certificate has moved", lambda: not node.missing())
            node.write(Report("node-a", now.id, now.stage, proven=True, reason=""))
            await until("it is proven", lambda now=now: not reports.holding(reports.read(directory), now))
            now = rotation.advance(directory, now)
        await until("it is over", lambda: node.rotation is None)
        site.ca.reload()
        assert node.bundle_pem == site.ca.bundle_pem
        assert stages == [Stage.TRUST, Stage.SIGN, Stage.DROP]
        await site.down()
        await site.up()
        await until("it is missed", lambda: not connected(node))
        await until("and back, all under the new root", lambda: connected(node))
        verify(await sign(node, "web"), site.ca.bundle_pem, now=time.time())


async def test_a_node_that_is_revoked_is_told_nothing_more(site: Site) -> None:
    async with site.node("node-a", site.token("node-a")) as node:
        await until("it has joined", lambda: connected(node))
        site.ca.revoke("node node-a")
        await until("refused", lambda: "node node-a was revoked" in str(node.warnings(time.time())))
        with pytest.raises(AuthorityError, match="does not answer"):
            await sign(node, "web")


async def test_a_revoked_workload_is_known_to_the_nodes(site: Site) -> None:
    async with site.node("node-a", site.token("node-a")) as node:
        await until("it has joined", lambda: connected(node))
        leaf = x509.load_pem_x509_certificates(await sign(node, "web"))[0]
        site.ca.revoke("default/web")
        await until("it is told", lambda: node.revoked.reason("default/web", leaf.serial_number))
        assert node.lists_pem == site.ca.lists_pem
        with pytest.raises(AuthorityError, match="default/web was revoked"):
            await sign(node, "web")


async def test_a_node_gets_tokens_for_what_runs_on_it_and_the_keys_that_check_them(site: Site) -> None:
    async with site.node("node-a", site.token("node-a")) as remote:
        await until("connected", lambda: connected(remote))

        async def token(account: str) -> str:
            return await asyncio.to_thread(
                remote.sign_jwt, spiffe_id(account), ["db"], owner=f"default/{account}"
            )

        claims = jwt.validated(await token("web"), remote.state.jwks, "db", DOMAIN, time.time())
        assert claims["sub"] == spiffe_id("web")
        with pytest.raises(AuthorityError, match="runs on node-b"):
            await token("api")
        with pytest.raises(AuthorityError, match="is of the service account web"):
            await asyncio.to_thread(remote.sign_jwt, spiffe_id("api"), ["db"], owner="default/web")
