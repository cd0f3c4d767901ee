"""A folder has one writer, or several readers that write nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from tessella.errors import OutputError, UsageError
from tessella.storage import LOCK, folder_lock, shared_lock


def test_a_second_writer_is_refused_and_the_first_one_leaves_the_folder_free(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with (
        folder_lock(folder),
        pytest.raises(UsageError, match="another process is writing") as caught,
        folder_lock(folder),
    ):
        pytest.fail("two writers in one folder")
    assert caught.value.code == "busy"
    with folder_lock(folder):
        pass


def test_a_path_of_a_thousand_folders_is_created_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with folder_lock(Path("d/" * 1200)):
        pass
    with pytest.raises(OutputError) as caught, folder_lock(Path("e/" * 3000)):
        pytest.fail("no system has such paths")
    assert caught.value.code == "output_failed"
    while Path("d").exists():  # shutil.rmtree recurses
        inner = Path("d/" * 600)
        Path("d/" * 600).rename("rest") if inner.exists() else Path("d").rename("rest")
        subprocess.run(["rm", "-rf", "rest"], check=True)


def test_locks_of_other_names_do_not_exclude_each_other(tmp_path: Path) -> None:
    with folder_lock(tmp_path, ".one"), folder_lock(tmp_path, ".two"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".one", ".two"]


def test_another_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from tessella.storage import folder_lock\n"
    code += "with folder_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    with process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        for lock in (folder_lock, shared_lock):
            with pytest.raises(UsageError) as caught, lock(tmp_path):
                pytest.fail("the folder is held")
            assert caught.value.code == "busy"
        process.kill()
    with folder_lock(tmp_path):
        pass


def test_readers_share_the_folder_and_keep_a_writer_out(tmp_path: Path) -> None:
    with folder_lock(tmp_path):
        pass
    with shared_lock(tmp_path), shared_lock(tmp_path):
        with pytest.raises(UsageError) as caught, folder_lock(tmp_path):
            pytest.fail("a writer was allowed next to readers")
        assert caught.value.code == "busy"
    with folder_lock(tmp_path):
        pass


def test_a_reader_writes_nothing(tmp_path: Path) -> None:
    with shared_lock(tmp_path), shared_lock(tmp_path / "absent"):
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), OSError(28, "No space left on device")])
def test_a_lock_that_cannot_be_written_is_a_coded_error(tmp_path: Path, error: OSError) -> None:
    real = os.open

    def refuse(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if str(path).startswith(str(tmp_path)) and flags & os.O_CREAT:
            raise error
        return real(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    with (
        mock.patch.object(os, "open", refuse),
        pytest.raises(OutputError, match=str(error.strerror)) as caught,
        folder_lock(tmp_path),
    ):
        pytest.fail("no lock was taken")
    assert caught.value.code == "output_failed"


def test_a_folder_in_place_of_the_lock_file_is_a_coded_error(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(OutputError), folder_lock(tmp_path):
        pytest.fail("no lock was taken")
