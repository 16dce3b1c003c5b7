"""What CMake lists is what the tree has: a file that is not listed is not installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from built_extension import REPOSITORY

MODULE = REPOSITORY / "SSLSegmentation"
LISTS = {
    "MODULE_PYTHON_SCRIPTS": ("*.py",),
    "MODULE_PYTHON_RESOURCES": ("*.ui", "*.png", "*.svg", "*.json", "*.txt", "*.ctbl"),
}


def listed(name: str) -> list[str]:
    """The files of a list in the module's CMakeLists.txt."""
    text = (MODULE / "CMakeLists.txt").read_text("utf-8")
    found = re.search(rf"set\({name}\n(.*?)\n\)", text, flags=re.DOTALL)
    assert found is not None
    return found[1].replace("${MODULE_NAME}", "SSLSegmentation").split()


def present(patterns: tuple[str, ...]) -> set[str]:
    """The files of the module's folder, relative to it."""
    paths = (path for pattern in patterns for path in MODULE.rglob(pattern))
    return {path.relative_to(MODULE).as_posix() for path in paths if path.name != "CMakeLists.txt"}


@pytest.mark.parametrize("name", LISTS)
def test_each_file_of_the_module_is_listed_once(name: str) -> None:
    files, there = listed(name), present(LISTS[name])
    assert len(files) == len(set(files))
    assert set(files) - there == set(), "these are listed and do not exist"
    assert there - set(files) == set(), f"add these to {name} in SSLSegmentation/CMakeLists.txt"


def test_the_module_has_no_files_of_other_kinds() -> None:
    known = {pattern.removeprefix("*") for patterns in LISTS.values() for pattern in patterns}
    files = (path for path in MODULE.rglob("*") if path.is_file())
    others = [
        path for path in files if path.suffix not in known and "__pycache__" not in path.parts
    ]
    assert others == [], "name their kind in LISTS, so that they are installed"


def test_only_the_module_itself_lies_where_slicer_takes_each_file_for_a_module() -> None:
    assert [path.name for path in MODULE.glob("*.py")] == ["SSLSegmentation.py"]


def test_no_name_in_the_folder_of_modules_collides_with_other_extensions() -> None:
    tops = {Path(file).parts[0] for name in LISTS for file in listed(name)}
    assert {top for top in tops if not top.startswith("SSLSegmentation")} == {"Resources"}
