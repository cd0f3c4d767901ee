"""Where explanations are written: a folder, one HTML page, or one file; each file is written atomically."""

from __future__ import annotations

import abc
from pathlib import Path
from typing import TypeAlias

from ..errors import UsageError
from ..storage import check_output, write_bytes
from .explanation import Explanation, FailedExplanation
from .likeness import LinkExplanation
from .link_figures import about_links
from .page import card, failure_card, legend, picture_card, write_page
from .storage import FILES, FileNames, check_folder

Result: TypeAlias = "Explanation | LinkExplanation | FailedExplanation"


class ResultWriter(abc.ABC):
    """Takes results one by one; `close` writes what is left and returns all files."""

    def __init__(self) -> None:
        self.files: list[Path] = []

    @abc.abstractmethod
    def add(self, result: Result) -> list[Path]:
        """Write one result, or keep it; return the files that were written. Raises OutputError `output_failed`."""

    def close(self) -> list[Path]:
        """Finish, and return all files that were written. Raises OutputError `output_failed`."""
        return self.files


class NoOutput(ResultWriter):
    """Writes nothing."""

    def add(self, result: Result) -> list[Path]:
        """Drop the result."""
        return []


class FolderOutput(ResultWriter):
    """Writes the files of every result to a folder, with names that are safe and unique.

    names_classes: whether the names contain the classes, because these were chosen by the user.
    """

    def __init__(self, folder: Path, *, names_classes: bool):
        super().__init__()
        self.folder, self.names_classes, self.names = folder, names_classes, FileNames()

    def add(self, result: Result) -> list[Path]:
        """Write the figure and, of an explanation of a class, the arrays. Raises OutputError `output_failed`."""
        if isinstance(result, FailedExplanation):
            return []
        parts = []
        if isinstance(result, Explanation) and self.names_classes:
            parts = [result.target.label] + ([] if result.versus is None else [f"not {result.versus.label}"])
        written = list(result.save(self.folder, self.names.new(result.key, *parts)))
        self.files += written
        return written


class PageOutput(ResultWriter):
    """Writes all results as one HTML page, at the end."""

    def __init__(self, path: Path, title: str):
        super().__init__()
        self.path, self.title = path, title
        self.cards: list[str] = []
        self.legend: dict[str, None] = {}  # texts in the order in which they are needed

    def add(self, result: Result) -> list[Path]:
        """Keep the HTML of the result."""
        if isinstance(result, FailedExplanation):
            self.cards.append(failure_card(result.key, result.status, result.message))
        elif isinstance(result, Explanation):
            self.cards.append(card(result))
            self.legend |= dict.fromkeys(legend(result))
        else:
            self.legend[about_links(exact=result.links.exact)] = None
            self.cards.append(picture_card(result.question, result.key, result.figure(), result.summary))
        return []

    def close(self) -> list[Path]:
        """Write the page. Raises OutputError `output_failed`."""
        if self.cards:
            write_page(self.path, self.cards, self.title, self.legend)
            self.files.append(self.path)
        return self.files


class FileOutput(ResultWriter):
    """Writes the only result as a .png or .npz file."""

    def __init__(self, path: Path):
        super().__init__()
        self.path = path

    def add(self, result: Result) -> list[Path]:
        """Write the figure or the arrays. Raises OutputError `output_failed`."""
        if isinstance(result, FailedExplanation):
            return []
        if self.path.suffix.lower() == ".png":
            write_bytes(self.path, result.figure())
        else:
            result.save_arrays(self.path)
        self.files.append(self.path)
        return [self.path]


def open_output(path: str | None, *, count: int | None, title: str, names_classes: bool = False) -> ResultWriter:
    """Return what writes results to `path`: a .html, .png or .npz file, or a folder; nothing for None.

    count: the number of results, if it is known. title: of the page. names_classes: as in FolderOutput. Raises
    UsageError `bad_argument` for several results in a .png or .npz file, and as `check_folder`, which also raises
    OutputError `output_failed`.
    """
    if path is None:
        return NoOutput()
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix in FILES and not target.is_dir():
        check_output(target, FILES)
        if suffix == ".html":
            return PageOutput(target, title)
        if count != 1:
            hint = "give a folder, or a .html file for one page"
            raise UsageError("bad_argument", f"{target.name!r} can hold only one explanation", hint=hint)
        return FileOutput(target)
    folder = check_folder(path, "give a folder, or a name ending in .html; for one image also .png or .npz")
    return FolderOutput(folder, names_classes=names_classes)
