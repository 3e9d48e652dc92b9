"""The folder as it is watched, on a real file system."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from penstock.errors import InputError
from penstock.sources import files, reading
from penstock.sources.files import GRACE, FileSource
from penstock.sources.reading import Absent, Content, read

QUEUE = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
Changes = Mapping[str, str | None]


class Watched:
    """A folder, its source, and the stream of its changes under their short names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = FileSource(str(folder))
        self._stream: AsyncIterator[Changes] | None = None

    def scan(self) -> dict[str, str | None]:
        return self._short(self.source.scan())

    async def next(self) -> dict[str, str | None]:
        if self._stream is None:
            self._stream = self.source.changes()
        async with asyncio.timeout(5):
            return self._short(await anext(self._stream))

    def _short(self, changes: Changes) -> dict[str, str | None]:
        return {os.path.relpath(file, self.folder): text for file, text in changes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "conf"
    path.mkdir()
    return path


@pytest.fixture
def watched(folder: Path) -> Iterator[Watched]:
    watched = Watched(folder)
    yield watched
    watched.source.close()


def test_a_missing_folder_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such directory") as caught:
        FileSource(str(tmp_path / "none"))
    assert caught.value.hint.startswith("mkdir")


def test_files_are_named_as_the_user_named_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.yml").write_text("a")
    monkeypatch.chdir(folder.parent)
    for given, shown in (("conf", "conf/sub/a.yml"), ("./conf/", "./conf/sub/a.yml")):
        with FileSource(given) as source:
            assert source.scan() == {shown: "a"}
            assert source.modified([shown])[shown] == os.stat("conf/sub/a.yml").st_mtime


def test_only_manifests_are_read(watched: Watched) -> None:
    for name in ("a.yaml", "b.yml", "c.json", "d.txt", ".e.yaml", "f.yaml~", ".g.yaml.swp", ".#h.yaml"):
        (watched.folder / name).write_text(name)
    (watched.folder / ".git").mkdir()
    (watched.folder / ".git" / "i.yaml").write_text("i")
    (watched.folder / "j.yaml").mkdir()
    os.mkfifo(watched.folder / "k.yaml")
    assert watched.scan() == {"a.yaml": "a.yaml", "b.yml": "b.yml", "c.json": "c.json"}


def test_a_scan_tells_what_differs_from_the_last(watched: Watched) -> None:
    (watched.folder / "a.yaml").write_text("a")
    assert watched.scan() == {"a.yaml": "a"}
    assert watched.scan() == {}
    (watched.folder / "a.yaml").unlink()
    (watched.folder / "b.yaml").write_text("b")
    assert watched.scan() == {"a.yaml": None, "b.yaml": "b"}


async def test_writing_renaming_and_deleting(watched: Watched) -> None:
    watched.scan()
    (watched.folder / "a.yaml").write_text("1")
    assert await watched.next() == {"a.yaml": "1"}
    (watched.folder / ".tmp").write_text("2")
    (watched.folder / ".tmp").rename(watched.folder / "a.yaml")
    assert await watched.next() == {"a.yaml": "2"}
    (watched.folder / "a.yaml").rename(watched.folder / "b.yaml")
    assert await watched.next() == {"a.yaml": None, "b.yaml": "2"}
    os.link(watched.folder / "b.yaml", watched.folder / "c.yaml")
    assert await watched.next() == {"c.yaml": "2"}
    (watched.folder / "b.yaml").unlink()
    assert await watched.next() == {"b.yaml": None}


async def test_a_change_is_told_soon(watched: Watched) -> None:
    watched.scan()
    delays = []
    for i in range(9):
        (watched.folder / "a.yaml").write_text(str(i))
        start = time.monotonic()
        assert await watched.next() == {"a.yaml": str(i)}
        delays.append(time.monotonic() - start)
    assert sorted(delays)[4] < 0.05


async def test_a_burst_is_one_change(watched: Watched) -> None:
    watched.scan()
    for i in range(200):
        (watched.folder / f"{i}.yaml").write_text(str(i))
    assert len(await watched.next()) == 200


async def test_half_a_file_is_never_taken(watched: Watched) -> None:
    watched.scan()
    with (watched.folder / "a.yaml").open("w") as file:
        file.write("half")
        file.flush()
        (watched.folder / "b.yaml").write_text("b")
        assert await watched.next() == {"b.yaml": "b"}
        assert watched.scan() == {}
        file.write(" and half")
    assert await watched.next() == {"a.yaml": "half and half"}
    with (watched.folder / "a.yaml").open("r+") as file:
        file.write("HALF")
        file.flush()
        (watched.folder / "b.yaml").write_text("c")
        assert await watched.next() == {"b.yaml": "c"}
        assert watched.scan() == {}
    assert await watched.next() == {"a.yaml": "HALF and half"}


def test_a_file_that_is_open_for_writing_is_busy(folder: Path) -> None:
    path = folder / "a.yaml"
    with open(path, "w"):
        assert read(str(path)) is Absent.BUSY
    assert not isinstance(read(str(path)), Absent)


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from now on."""
    found: list[str] = []

    def noted(path: str) -> Content | Absent:
        found.append(os.path.basename(path))
        return read(path)

    monkeypatch.setattr(files, "read", noted)
    return found


def test_a_scan_reads_no_file_that_nobody_touched(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_TICK", -1)
    path, other = watched.folder / "a.yaml", watched.folder / "b.yaml"
    path.write_text("one")
    other.write_text("other")
    watched.scan()
    seen = reads(monkeypatch)
    assert (watched.scan(), seen) == ({}, [])
    # As long as before, and as old by its own word.
    about = os.stat(path)
    while os.stat(path).st_ctime_ns == about.st_ctime_ns:
        path.write_text("two")
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (watched.scan(), seen) == ({"a.yaml": "two"}, ["a.yaml"])
    os.replace(other, path)
    assert watched.scan() == {"a.yaml": "other", "b.yaml": None}
    with open(path, "w"):
        assert watched.scan() == {}
    assert (watched.scan(), seen.count("a.yaml") > 2) == ({}, True)


def test_what_was_touched_just_now_is_read_again(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next time may look the same to the file system."""
    (watched.folder / "a.yaml").write_text("a")
    watched.scan()
    seen = reads(monkeypatch)
    watched.scan()
    assert seen == ["a.yaml"]


async def test_an_empty_file_counts_after_a_while(watched: Watched) -> None:
    (watched.folder / "a.yaml").write_text("1")
    watched.scan()
    start = time.monotonic()
    (watched.folder / "a.yaml").write_text("")
    (watched.folder / "b.yaml").write_text("b")
    assert await watched.next() == {"b.yaml": "b"}
    assert await watched.next() == {"a.yaml": ""}
    assert GRACE - 0.05 <= time.monotonic() - start < GRACE + 0.5


async def test_a_file_that_is_filled_again_in_time_was_never_empty(watched: Watched) -> None:
    (watched.folder / "a.yaml").write_text("1")
    watched.scan()
    (watched.folder / "a.yaml").write_text("")
    assert watched.scan() == {}
    (watched.folder / "a.yaml").write_text("2")
    assert await watched.next() == {"a.yaml": "2"}


async def test_an_editor_that_moves_the_file_to_its_backup(watched: Watched) -> None:
    path, backup = watched.folder / "a.yaml", watched.folder / "a.yaml~"
    path.write_text("1")
    watched.scan()
    path.rename(backup)
    (watched.folder / "b.yaml").write_text("b")
    assert await watched.next() == {"b.yaml": "b"}
    path.write_text("2")
    backup.unlink()
    assert await watched.next() == {"a.yaml": "2"}


async def test_new_directories_are_read_and_watched(watched: Watched) -> None:
    watched.scan()
    deep = watched.folder / "x" / "y" / "z"
    deep.mkdir(parents=True)
    (deep / "a.yaml").write_text("1")
    assert await watched.next() == {"x/y/z/a.yaml": "1"}
    (deep / "a.yaml").write_text("2")
    assert await watched.next() == {"x/y/z/a.yaml": "2"}
    (watched.folder / "x").rename(watched.folder / "w")
    assert await watched.next() == {"x/y/z/a.yaml": None, "w/y/z/a.yaml": "2"}
    (watched.folder / "w" / "y" / "z" / "a.yaml").write_text("3")
    assert await watched.next() == {"w/y/z/a.yaml": "3"}
    (watched.folder / "w").rename(watched.folder.parent / "outside")
    assert await watched.next() == {"w/y/z/a.yaml": None}


async def test_a_mounted_config_map_is_swapped_as_one(watched: Watched) -> None:
    folder = watched.folder
    for version in ("1", "2"):
        (folder / f"..{version}").mkdir()
        for name in ("a.yaml", "b.yaml"):
            (folder / f"..{version}" / name).write_text(version)
    (folder / "..data").symlink_to("..1")
    for name in ("a.yaml", "b.yaml"):
        (folder / name).symlink_to(f"..data/{name}")
    assert watched.scan() == {"a.yaml": "1", "b.yaml": "1"}
    (folder / "..data_tmp").symlink_to("..2")
    (folder / "..data_tmp").rename(folder / "..data")
    assert await watched.next() == {"a.yaml": "2", "b.yaml": "2"}


@pytest.mark.parametrize("relative", [False, True])
async def test_a_link_is_followed_to_its_target(
    folder: Path, tmp_path: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "dir").mkdir(parents=True)
    (elsewhere / "a").write_text("1")
    (elsewhere / "dir" / "b.yaml").write_text("1")
    monkeypatch.chdir(tmp_path)
    (folder / "a.yaml").symlink_to("../elsewhere/a")
    (folder / "dir").symlink_to(elsewhere / "dir")
    watched = Watched(Path("conf") if relative else folder)
    assert watched.scan() == {"a.yaml": "1", "dir/b.yaml": "1"}
    (elsewhere / "a").write_text("2")
    assert await watched.next() == {"a.yaml": "2"}
    (elsewhere / "new").write_text("3")
    (elsewhere / "new").rename(elsewhere / "a")
    assert await watched.next() == {"a.yaml": "3"}
    (elsewhere / "dir" / "b.yaml").write_text("2")
    assert await watched.next() == {"dir/b.yaml": "2"}
    (elsewhere / "other").mkdir()
    (elsewhere / "other" / "b.yaml").write_text("3")
    (folder / ".new").symlink_to(elsewhere / "other")
    (folder / ".new").rename(folder / "dir")
    assert await watched.next() == {"dir/b.yaml": "3"}
    watched.source.close()


def test_a_circle_of_links_ends(watched: Watched) -> None:
    (watched.folder / "a.yaml").write_text("a")
    (watched.folder / "again").symlink_to(".")
    (watched.folder / "loop.yaml").symlink_to("loop.yaml")
    assert watched.scan() == {"a.yaml": "a"}


async def test_a_folder_that_vanishes_keeps_its_content_until_it_is_back(watched: Watched) -> None:
    (watched.folder / "a.yaml").write_text("1")
    (watched.folder / "b.yaml").write_text("b")
    watched.scan()
    watched.folder.rename(watched.folder.parent / "old")
    assert watched.scan() == {}
    staged = watched.folder.parent / "staged"
    staged.mkdir()
    (staged / "a.yaml").write_text("2")
    (staged / "b.yaml").write_text("b")
    os.utime(staged / "b.yaml", ns=(0, os.stat(watched.folder.parent / "old" / "b.yaml").st_mtime_ns))
    staged.rename(watched.folder)
    assert await watched.next() == {"a.yaml": "2"}
    (watched.folder / "a.yaml").write_text("3")
    assert await watched.next() == {"a.yaml": "3"}


async def test_a_queue_that_runs_over_leads_to_a_full_look(watched: Watched) -> None:
    """More events than the kernel queues, while nobody drains it."""
    watched.scan()
    (watched.folder / "a.txt").write_text("")
    (watched.folder / "b.txt").write_text("")
    for i in range(QUEUE):
        # Alternating names: the kernel joins equal events that follow each other.
        os.utime(watched.folder / ("a.txt" if i % 2 else "b.txt"))
    (watched.folder / "a.yaml").write_text("1")
    assert await watched.next() == {"a.yaml": "1"}


def test_text_that_is_not_utf8_and_a_byte_order_mark(watched: Watched) -> None:
    (watched.folder / "a.yaml").write_bytes(b"a: \xff")
    (watched.folder / "b.yaml").write_bytes(b"\xef\xbb\xbfb")
    assert watched.scan() == {"a.yaml": "a: \udcff", "b.yaml": "b"}


async def test_closing_while_changes_are_awaited(watched: Watched) -> None:
    watched.scan()
    stream = watched.source.changes()
    waiting = asyncio.ensure_future(anext(stream))
    (watched.folder / "a.yaml").write_text("1")
    await waiting
    watched.source.close()
    await stream.aclose()  # type: ignore[attr-defined]
