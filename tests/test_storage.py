"""Only regular files are replaced, completely or not at all; links, devices, pipes and folders are kept."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from tessella.errors import OutputError, UsageError
from tessella.storage import (
    cache_folder,
    copy_file,
    create_output_folder,
    expand_home,
    publish_folder,
    replacing,
    write_atomic,
)
from tessella.training.config import is_teacher_file
from tessella.weights.fetch import check_location


def test_a_file_is_replaced_and_keeps_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    write_atomic(path, b"one")
    path.chmod(0o640)
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]


def test_a_block_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_bytes(b"one")
    with pytest.raises(TypeError), replacing(path) as file:
        file.writelines([b"half", None])  # type: ignore[list-item]
    assert path.read_bytes() == b"one"
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "disk").mkdir()
    target = tmp_path / "disk" / "target.csv"
    if exists:
        target.write_bytes(b"old")
    link, outer = tmp_path / "link.csv", tmp_path / "outer.csv"
    link.symlink_to("disk/target.csv")
    outer.symlink_to(link)
    write_atomic(outer, b"new")
    assert target.read_bytes() == b"new"
    assert link.is_symlink()
    assert outer.is_symlink()


def test_broken_links_are_errors(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("absent/out.csv")
    for name in ("loop", "gone"):
        with pytest.raises(OSError, match=name if name == "loop" else "absent"):
            write_atomic(tmp_path / name, b"data")
        assert (tmp_path / name).is_symlink()


def test_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "folder", b"data")
    assert [one.name for one in tmp_path.iterdir()] == ["folder"]


def test_devices_are_written_to(tmp_path: Path) -> None:
    before = Path("/dev/null").stat().st_rdev
    write_atomic(Path("/dev/null"), b"data")
    (tmp_path / "link").symlink_to("/dev/null")
    write_atomic(tmp_path / "link", b"data")
    assert Path("/dev/null").stat().st_rdev == before
    with pytest.raises(OSError, match="No space left") as caught:
        write_atomic(Path("/dev/full"), b"data")
    assert caught.value.errno == errno.ENOSPC
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_pipe_is_written_to_and_needs_a_reader(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="No such device"):
        write_atomic(pipe, b"data")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomic(pipe, b"data")
    assert os.read(reader, 100) == b"data"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_data_for_standard_output_follows_printed_text(tmp_path: Path) -> None:
    """/dev/stdout leads to the shell's output file, which must not be replaced."""
    code = "from pathlib import Path; from tessella.storage import write_atomic\n"
    code += "print('before'); write_atomic(Path('/dev/stdout'), b'data\\n'); print('after')"
    shell = f'{sys.executable} -c "{code}" > {tmp_path}/out; {sys.executable} -c "{code}" | cat > {tmp_path}/piped'
    subprocess.run(["sh", "-c", shell], check=True)
    for name in ("out", "piped"):
        assert (tmp_path / name).read_text() == "before\ndata\nafter\n"


def test_an_open_descriptor_is_written_to(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as file:
        write_atomic(Path(f"/dev/fd/{file.fileno()}"), b"one")
        write_atomic(Path(f"/proc/self/fd/{file.fileno()}"), b"two")
    assert (tmp_path / "out").read_bytes() == b"onetwo"
    with pytest.raises(OSError, match="Bad file descriptor"):
        write_atomic(Path("/dev/fd/987"), b"data")


def test_the_longest_file_name(tmp_path: Path) -> None:
    path = tmp_path / ("ä" * 125 + ".csv")  # 254 bytes
    write_atomic(path, b"data")
    assert path.read_bytes() == b"data"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_leaves_the_old_file(tmp_path: Path, call: str) -> None:
    path, other = tmp_path / "out", tmp_path / "new"
    path.write_bytes(b"old")
    other.write_bytes(b"new")
    full = OSError(errno.ENOSPC, "No space left on device")
    with mock.patch.object(os, call, side_effect=full), pytest.raises(OSError, match="No space left"):
        copy_file(other, path)
    assert path.read_bytes() == b"old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["new", "out"]


def test_an_output_folder_is_created_with_its_parents(tmp_path: Path) -> None:
    assert create_output_folder(tmp_path / "a" / "b") == create_output_folder(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file") as caught:
        create_output_folder(tmp_path / "file")
    assert caught.value.code == "output_failed"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders(tmp_path: Path, code: int) -> None:
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    with mock.patch.object(os, "fsync", fsync):
        write_atomic(tmp_path / "out", b"new")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_a_drive_that_does_not_exist_is_an_error() -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such drive")
    with (
        mock.patch.object(Path, "exists", side_effect=[False] * 10),
        mock.patch.object(Path, "mkdir", side_effect=missing),
        pytest.raises(OutputError, match="No such drive"),
    ):
        create_output_folder("/folder")


def test_a_folder_gets_its_name_after_its_files_are_on_the_disk(tmp_path: Path) -> None:
    draft, folder = tmp_path / "draft", tmp_path / "folder"
    draft.mkdir()
    folder.mkdir()
    (draft / "a").write_bytes(b"a")
    calls: list[str] = []
    sync, rename = os.fsync, Path.rename

    def fsync(descriptor: int) -> None:
        calls.append(next(one.name for one in (tmp_path, draft, draft / "a") if same(one, descriptor)))
        sync(descriptor)

    def same(path: Path, descriptor: int) -> bool:
        return path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor))

    def renamed(path: Path, target: Path) -> Path:
        calls.append("rename")
        return rename(path, target)

    with mock.patch.object(os, "fsync", fsync), mock.patch.object(Path, "rename", renamed):
        publish_folder(draft, folder)
    assert calls == ["a", "draft", "rename", tmp_path.name]
    assert (folder / "a").read_bytes() == b"a"

    draft.mkdir()
    (draft / "b").touch()
    with (
        mock.patch.object(os, "fsync", side_effect=OSError(errno.ENOSPC, "full")),
        pytest.raises(OSError, match="full"),
    ):
        publish_folder(draft, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_home_folder_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expand_home("~/x") == tmp_path / "x"
    assert expand_home("~") == tmp_path
    assert expand_home("a/~") == Path("a/~")


@pytest.mark.parametrize(
    "call", [expand_home, is_teacher_file, lambda name: check_location("a/b", None, name, None, None)]
)
def test_the_home_folder_of_an_unknown_user_is_refused(call: Callable[[str], object]) -> None:
    with pytest.raises(UsageError, match="a user who does not exist") as caught:
        call("~nobody-of-this-name/x")
    assert caught.value.code == "bad_argument"


def test_a_user_without_a_home_folder_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers, programs often run under a number that no user has."""

    def unknown(user: object) -> None:
        raise KeyError(user)

    for name in ("HOME", "TESSELLA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    with pytest.raises(UsageError, match="the current user has none") as caught:
        cache_folder()
    assert caught.value.code == "bad_argument"
    assert caught.value.hint == "set HOME, or give a path without ~"
