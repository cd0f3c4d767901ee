"""The tables of docs/families are those of the package's data, the figures are those of the script that draws them."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tessella.cli.program import cli
from tessella.models.configs import CONFIGS
from tessella.weights.catalogue import CATALOGUE

from .families import FOLDER, PAGES, PARTS, checkpoints, errors, page_text, pages, speed, variants
from .structure import ROOT

TEXTS = {path: path.read_text(encoding="utf-8") for path in pages()}
OUTLINE = (
    *("Equations", "Architectures", "Checkpoints", "Published accuracy and speed", "Measured speed"),
    *("Train", "Explain", "Pitfalls"),
)
BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_generated_parts_are_up_to_date(path: Path) -> None:
    """If this fails, run scripts/families."""
    assert page_text(TEXTS[path], pages()[path]) == TEXTS[path]


def test_changed_figures_are_found() -> None:
    path = FOLDER / "convmixer.md"
    assert "80.16" in TEXTS[path]
    assert page_text(TEXTS[path].replace("80.16", "80.61"), "convmixer") == TEXTS[path]


@pytest.mark.parametrize("page", PAGES)
def test_pages_have_the_same_outline_and_all_tables(page: str) -> None:
    text = TEXTS[FOLDER / f"{page}.md"]
    assert tuple(re.findall(r"^## (.+)$", text, re.M)) == OUTLINE
    expected = {"papers", "variants", "checkpoints", "errors", "accuracy", "speed"} - (
        {"speed"} if page == "gmlp" else set()
    )
    assert set(re.findall(r"<!-- generated: (\w+) -->", text)) == expected < set(PARTS)


def test_every_architecture_and_checkpoint_is_on_one_page() -> None:
    names = set(CONFIGS) | {name for name, row in CATALOGUE.items() if row.has_weights}
    tables = {word: f"{variants(word)}\n{checkpoints(word)}" for word in PAGES.values()}
    found = [name for table in tables.values() for name in re.findall(r"^\| `([^`]+)`", table, re.M)]
    assert sorted(found) == sorted(names)


def test_what_is_wrong_with_a_checkpoint_is_said() -> None:
    assert "despite its tag these are the weights trained on ImageNet-1k alone" in errors("mixer").replace(
        "Despite", "despite"
    )
    assert "CC-BY-NC" in errors("convit")
    assert "(all)" in errors("crossvit")


def test_speeds_have_their_conditions() -> None:
    text = speed("gmixer")
    assert "random weights" in text
    assert "refused" in text
    assert re.search(r"2 threads.* rounds", text)
    assert "images/s" in speed("resmlp")
    assert speed("gmlp") == ""


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.fixture(name="figures", scope="module")
def _figures() -> dict[str, str]:
    """The figures as benchmarks/family_figures.py draws them, by page."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        drawing = importlib.import_module("family_figures")
    finally:
        sys.path.remove(str(BENCHMARKS))
    return {name: draw().svg() for name, draw in drawing.FIGURES.items()}


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_up_to_date(page: str, figures: dict[str, str]) -> None:
    """If this fails, run scripts/bench family_figures."""
    path = FOLDER / "images" / f"{page}.svg"
    text = path.read_text(encoding="utf-8")
    assert text == figures[page]
    assert len(text.encode()) < 60_000
    root = ElementTree.fromstring(text)  # well-formed
    texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}desc")]
    assert len(texts) == 1
    assert len(texts[0]) > 80
    assert "prefers-color-scheme:dark" in text
    assert not re.search(r"(href|src|url\()=?[\"']?https?:", text)
    assert re.search(rf"!\[[^\]]{{60,}}\]\(images/{page}\.svg\)", TEXTS[FOLDER / f"{page}.md"]), "no alternative text"


def test_a_text_that_does_not_fit_its_box_is_an_error(figures: dict[str, str]) -> None:
    drawing = sys.modules["family_drawing"].Drawing("", "")
    with pytest.raises(ValueError, match="too long for 96 units"):
        drawing.box(0, 0, 100, 30, "plain", ["a text that is much too long for a box of 100 units"])


# --- commands and links -----------------------------------------------------------------------------------------------


def _commands(text: str) -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    inline = [line for line in re.findall(r"`(tessella [^`]+)`", text) if "/" not in line.split()[1]]
    return [line for line in (*lines, *inline) if line.startswith("tessella ") and len(line.split()) > 2]


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_commands_are_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options exist, and models are known."""
    monkeypatch.chdir(ROOT)
    commands = _commands(TEXTS[path])
    assert commands
    for command in commands:
        _, name, *args = shlex.split(command)
        with cli.make_context("tessella", [name, *args], resilient_parsing=True) as context:
            subcommand = cli.get_command(context, name)
            assert subcommand is not None, command
            subcommand.make_context(name, args, parent=context).close()
        for word in re.findall(r"[a-z]+_\w+(?:\.\w+)?", " ".join(args)):
            assert word in CONFIGS or word in CATALOGUE, command


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_names_of_models_exist(path: Path) -> None:
    words = "|".join(PAGES.values())
    names = re.findall(rf"`((?:{words})_[a-z0-9_]+(?:\.\w+)?)`", TEXTS[path])
    assert names
    old = {"mixer_b16_224_in21k", "mixer_l16_224_in21k", "resmlp_12_224_dino", "resmlp_24_224_dino"}
    assert [name for name in names if name not in CONFIGS and name not in CATALOGUE and name not in old] == []


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_links_exist(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[path]):
        if link.startswith("https://arxiv.org/"):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, link
