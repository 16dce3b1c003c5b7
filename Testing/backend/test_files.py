from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.errors import BackendError, ResourceError, UserError, told_plainly
from backend.files import remove_parts, require_file_place, write_json, write_text, written_whole


def _write_half(path: Path, failure: BaseException) -> None:
    with written_whole(path) as part:
        part.write_text("hal")
        raise failure


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_when_the_block_ends_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.nii.gz"
    with written_whole(path) as part:
        assert part.parent == path.parent
        assert part.name.endswith(".nii.gz")
        part.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert _names(path.parent) == ["c.nii.gz"]


@pytest.mark.parametrize("failure", [RuntimeError("torn"), KeyboardInterrupt()])
def test_what_was_there_stays_when_the_block_fails(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "before")
    with pytest.raises(type(failure)):
        _write_half(path, failure)
    assert path.read_text() == "before"
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "kind", "code"),
    [
        (errno.ENOSPC, ResourceError, 4),
        (errno.EDQUOT, ResourceError, 4),
        (errno.EROFS, UserError, 2),
        (errno.EIO, BackendError, 1),
    ],
)
def test_what_the_system_refuses_is_told_with_the_path(
    tmp_path: Path, number: int, kind: type[BackendError], code: int
) -> None:
    path = tmp_path / "a.txt"
    with pytest.raises(kind) as caught:
        _write_half(path, OSError(number, "refused"))
    assert str(path) in caught.value.message
    assert caught.value.exit_code == code
    assert _names(tmp_path) == []


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(UserError, match=r"b\.json"):
        write_json(tmp_path / "a" / "b.json", {})


def test_json_is_plain_text_that_reads_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Höhe", "values": [1, None]})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert "Höhe" in text
    assert json.loads(text) == {"name": "Höhe", "values": [1, None]}


def test_errors_are_told_plainly_by_what_they_mean() -> None:
    own = UserError("It is so.", "Do this.")
    assert told_plainly(own) is own
    assert str(own) == "It is so. Do this."
    assert told_plainly(KeyboardInterrupt()).exit_code == 3
    assert told_plainly(MemoryError()).exit_code == 4
    assert told_plainly(RuntimeError("CUDA out of memory. Tried to")).exit_code == 4
    assert told_plainly(OSError(errno.ENOSPC, "full"), "x").exit_code == 4
    unknown = told_plainly(ZeroDivisionError("division by zero"))
    assert unknown.exit_code == 1
    assert "ZeroDivisionError" in unknown.message


def test_what_a_library_wrote_for_the_owner_alone_is_readable_as_other_files_are(
    tmp_path: Path,
) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("x")
    with written_whole(tmp_path / "y.bin") as part:
        part.touch(mode=0o600)
    assert (tmp_path / "y.bin").stat().st_mode == plain.stat().st_mode


def test_parts_of_writers_that_died_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    for name in (f".part-{gone}-0-status.json", f".part-{os.getpid()}-0-a", ".part-x", "kept"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".part-{os.getpid()}-0-a",
        ".part-x",
        "kept",
    ]


def test_a_folder_or_a_circle_of_links_is_no_place_for_a_file(tmp_path: Path) -> None:
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for path in (circle, circle / "x.csv"):
        with pytest.raises(UserError, match=str(circle)):
            require_file_place(path)
    with pytest.raises(UserError, match="a folder stands where a file should be"):
        require_file_place(tmp_path)
    require_file_place(tmp_path / "new" / "x.csv")
