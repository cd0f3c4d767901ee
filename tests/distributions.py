"""Check what the wheel and the source distribution contain: `python -m tests.distributions DIST SOURCE`.

DIST has one wheel and one .tar.gz file, which were built from SOURCE, a copy of the tree without other files.
"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

NEEDED = (  # patterns that at least one file of a wheel matches
    "tessella/py.typed",
    "tessella/__init__.pyi",
    "tessella/*/__init__.pyi",
    "tessella/weights/builtin/*.safetensors",
    "tessella/data/photographs/*.jpg",
    "tessella/data/tables/*.tsv",
    "tessella/serve/page/index.html",
    "tessella/serve/page/*.js",
    "tessella/serve/page/*.css",
    "*.dist-info/licenses/LICENSE",
    "*.dist-info/entry_points.txt",
)
MAX_BYTES = {".whl": 25_000_000, ".gz": 30_000_000}
IGNORED = ("__pycache__",)


def files_of(folder: Path) -> set[str]:
    """Return the files in a folder as paths relative to it."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in found if not set(IGNORED) & set(path.parts)}


def wheel_files(path: Path) -> set[str]:
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def sdist_files(path: Path) -> set[str]:
    """Return the files of a source distribution without the name of its top folder."""
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2] for member in archive if member.isfile()}


def wheel_problems(files: Iterable[str], source: Iterable[str]) -> list[str]:
    """Return what is wrong with the files of a wheel. source: the files of the tree."""
    found = {name for name in files if ".dist-info/" not in name}
    expected = {name.removeprefix("src/") for name in source if name.startswith("src/")}
    problems = differences(found, expected)
    problems += [f"no file matches {one}" for one in NEEDED if not any(Path(name).match(one) for name in files)]
    return problems


def sdist_problems(files: Iterable[str], source: Iterable[str]) -> list[str]:
    """Return what is wrong with the files of a source distribution: it has all files of the tree, and its metadata."""
    return differences(set(files), {*source, "PKG-INFO"})


def differences(found: set[str], expected: set[str]) -> list[str]:
    return [
        *(f"{name} is missing" for name in sorted(expected - found)),
        *(f"{name} does not belong there" for name in sorted(found - expected)),
    ]


def size_problems(path: Path) -> list[str]:
    limit, size = MAX_BYTES[path.suffix], path.stat().st_size
    return [f"{size / 1e6:.1f} MB are more than {limit / 1e6:.0f} MB"] if size > limit else []


def only_one(folder: Path, pattern: str) -> Path:
    paths = list(folder.glob(pattern))
    if len(paths) != 1:
        sys.exit(f"{folder} has {len(paths)} files {pattern}, expected one: remove the folder and build again")
    return paths[0]


def main() -> None:
    folder, tree = map(Path, sys.argv[1:])
    source = files_of(tree)
    wheel, sdist = only_one(folder, "*.whl"), only_one(folder, "*.tar.gz")
    found = {
        wheel: (wheel_files(wheel), wheel_problems(wheel_files(wheel), source)),
        sdist: (sdist_files(sdist), sdist_problems(sdist_files(sdist), source)),
    }
    failed = False
    for path, (files, problems) in found.items():
        print(f"{path.name}: {len(files):,} files, {path.stat().st_size / 1e6:.1f} MB")
        for problem in [*problems, *size_problems(path)]:
            print(f"  {problem}", file=sys.stderr)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    main()
