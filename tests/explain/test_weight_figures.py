"""Figures of weights: which there are for a family, what they show, how they are written, and what is refused."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

import tessella
from tessella.errors import ImageError, OutputError, UsageError
from tessella.explain import attention_figures, kernel_figures
from tessella.explain.attention_weights import StageAttention
from tessella.explain.mosaic_panels import ATTENTION, MARGIN, Canvas, outline_cells, signed_colors
from tessella.explain.mosaics import make_mosaic
from tessella.explain.subject import PreparedImage, Subject
from tessella.explain.weight_figures import explain_weights, weight_figures
from tessella.export import export

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "convit_ti_p4_32.cifar10": {
        "convit-gates.png",
        "convit-position.png",
        "convit-content.png",
        "convit-non-locality.png",
        "patch-filters.png",
    },
    "crossvit_ti_dagger_p4_32.cifar10": {"crossvit-branches.png", "crossvit-fusions.png"},
    "mixer_ti_p4_32.cifar10": {
        "token-mixing.png",
        "token-mixing-outputs.png",
        "token-mixing-summary.png",
        "patch-filters.png",
    },
    "gmixer_ti_p4_32.cifar10": {
        "token-mixing.png",
        "token-mixing-outputs.png",
        "token-mixing-gates.png",
        "token-mixing-summary.png",
        "patch-filters.png",
    },
    "convmixer_256_8_ks3_p4.cifar10": {"patch-filters.png", "depthwise-kernels.png", "depthwise-reach.png"},
}


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


# --- the files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_figures_of_the_built_in_models(name: str, tmp_path: Path) -> None:
    paths = explain_weights(tessella.load(name), tmp_path / "new" / "folder")
    assert {path.name for path in paths} == FILES[name]
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == FILES[name]  # and no temporary file
    for path in paths:
        picture = pixels_of(path)
        assert 200 < picture.shape[0] < 2000
        assert 300 < picture.shape[1] < 2000
        assert (picture == 255).all(2).mean() < 0.96  # something is drawn


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("resmlp_12_224", {"token-mixing-positions.png", "token-mixing.png"}),
        ("gmlp_ti16_224", {"token-mixing-positions.png", "token-mixing.png"}),
    ],
)
def test_figures_of_models_with_random_weights(name: str, files: set[str], tmp_path: Path) -> None:
    model = tessella.create_model(name, img_size=64, num_classes=2)
    paths = explain_weights(model, tmp_path)
    assert {path.name for path in paths} == files | {"token-mixing-summary.png", "patch-filters.png"}


@pytest.mark.parametrize("name", ["convit_small", "crossvit_15_240", "convmixer_1024_20_ks9_p14"])
def test_large_models_are_shown_in_part(name: str, tmp_path: Path) -> None:
    for path in explain_weights(tessella.create_model(name), tmp_path):
        assert max(pixels_of(path).shape) < 2200


def test_images_that_are_not_square(tmp_path: Path) -> None:
    for name in ("convit_tiny", "crossvit_9_240", "mixer_s32_224"):
        size = (240, 480) if name.startswith("crossvit") else (64, 96)
        explain_weights(tessella.create_model(name, img_size=size, num_classes=2), tmp_path / name)
        assert len(list((tmp_path / name).iterdir())) >= 2


def test_a_convit_without_gates_has_no_figures_of_them(tmp_path: Path) -> None:
    model = tessella.create_model("convit_tiny", img_size=32, num_classes=2, local_up_to_layer=0)
    paths = explain_weights(model, tmp_path)
    assert {path.name for path in paths} == {"convit-non-locality.png", "patch-filters.png"}


def test_figures_are_the_same_every_time(tmp_path: Path) -> None:
    model = tessella.load("crossvit_ti_dagger_p4_32.cifar10")
    first, second = (explain_weights(model, tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_the_image_decides_attention_by_content_only(tmp_path: Path) -> None:
    subject = Subject(tessella.load("convit_ti_p4_32.cifar10"))
    explain_weights(subject, tmp_path / "a")
    explain_weights(subject, tmp_path / "b", image=ROOT / "examples" / "rocket.jpg")
    same = {
        path.name
        for path in (tmp_path / "a").iterdir()
        if path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    }
    assert same == {"convit-gates.png", "convit-position.png", "patch-filters.png"}


def test_the_default_image_is_a_photograph_of_the_package(tmp_path: Path) -> None:
    model = tessella.load("crossvit_ti_dagger_p4_32.cifar10")
    default = explain_weights(model, tmp_path / "a")
    given = explain_weights(model, tmp_path / "b", image=ROOT / "src/tessella/data/photographs/cat.jpg")
    assert [path.read_bytes() for path in default] == [path.read_bytes() for path in given]


def test_the_model_does_not_change(tmp_path: Path) -> None:
    model = tessella.create_model("convit_tiny", img_size=32, num_classes=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    explain_weights(model, tmp_path)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(bool((value == before[name]).all()) for name, value in model.state_dict().items())


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_exported_model_is_refused(tmp_path: Path) -> None:
    folder = export(tessella.load("convmixer_256_8_ks3_p4.cifar10"), tmp_path / "exported")
    exported = tessella.load(f"local-dir:{folder}")
    with pytest.raises(UsageError, match="exported") as caught:
        explain_weights(exported, tmp_path / "out")
    assert caught.value.code == "bad_argument"


@pytest.mark.parametrize("kind", ["file", "below a file"])
def test_a_folder_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("kept")
    out = tmp_path / "taken" / ("" if kind == "file" else "folder")
    with pytest.raises(OutputError) as caught:
        explain_weights(tessella.load("convmixer_256_8_ks3_p4.cifar10"), out)
    assert caught.value.code == "output_failed"
    assert (tmp_path / "taken").read_text() == "kept"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError) as caught:
        explain_weights(tessella.load("convmixer_256_8_ks3_p4.cifar10"), tmp_path / "out")
    assert caught.value.code == "output_failed"


@pytest.mark.parametrize(("image", "code"), [("missing.jpg", "not_found"), (b"no image", "unsupported_format")])
def test_an_image_that_cannot_be_read(image: str | bytes, code: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        explain_weights(tessella.load("convit_ti_p4_32.cifar10"), tmp_path, image)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []


def test_several_images(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected one"):
        explain_weights(tessella.load("convit_ti_p4_32.cifar10"), tmp_path, ROOT / "examples")


def test_a_failed_figure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tessella.load("crossvit_ti_dagger_p4_32.cifar10")
    paths = explain_weights(model, tmp_path)
    before = [path.read_bytes() for path in paths]
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OutputError):
        explain_weights(model, tmp_path, ROOT / "examples" / "rocket.jpg")
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert [path.read_bytes() for path in paths] == before


# --- what the figures show --------------------------------------------------------------------------------------------


def luminance(colors: np.ndarray) -> np.ndarray:
    """Return the relative luminance (WCAG) of (N,3) sRGB colors."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("name", ["signed", ATTENTION])
def test_color_maps_become_lighter_all_the_way(name: str) -> None:
    colors = (signed_colors() if name == "signed" else matplotlib.colormaps[name])(np.linspace(0, 1, 101))[:, :3]
    assert (np.diff(luminance(colors)) > 0).all()
    gray = (luminance(colors) * 1.0) ** (1 / 2.2)
    assert gray[-1] - gray[0] > 0.75  # of the range of a gray print


def test_zero_weights_are_gray() -> None:
    red, green, blue, _ = signed_colors()(0.5)
    assert max(red, green, blue) - min(red, green, blue) < 0.02


def test_signs_differ_for_people_without_green_or_red_cones() -> None:
    """Blue against yellow is left to them: the sign of blue minus the mean of red and green tells the weight's sign."""
    colors = signed_colors()(np.array([0.1, 0.25, 0.4, 0.6, 0.75, 0.9]))[:, :3]
    contrast = colors[:, 2] - colors[:, :2].mean(1)
    assert (contrast[:3] > 0.03).all()
    assert (contrast[3:] < -0.03).all()


def test_a_cell_of_a_mosaic_is_a_pixel() -> None:
    tiles = np.random.default_rng(0).uniform(size=(6, 4, 5, 3)).round(2).astype(np.float32)
    mosaic = make_mosaic(tiles, 3, size=30)
    canvas = Canvas("title", 400, 200)
    canvas.mosaic(mosaic, 10, 20, signed=False)
    drawn = np.asarray(Image.open(io.BytesIO(canvas.png())).convert("RGB")).astype(int)
    height, width = mosaic.picture.shape[:2]
    expected = (mosaic.picture * 255).round().astype(int)
    top, left = canvas.top + 20, MARGIN + 10
    assert np.abs(drawn[top : top + height, left : left + width] - expected).max() <= 1


def test_outlines_are_around_their_cells() -> None:
    mosaic = make_mosaic(np.full((4, 5, 6), 0.5, np.float32), 2, size=60, gap=4)
    canvas = Canvas("title", 300, 300)
    panel, _ = canvas.mosaic(mosaic, 0, 0, signed=False)
    plain = np.asarray(Image.open(io.BytesIO(canvas.png())).convert("RGB")).astype(int)
    outline_cells(panel, mosaic, [(3, 2, 4)], (5, 6))
    drawn = np.asarray(Image.open(io.BytesIO(canvas.png())).convert("RGB")).astype(int)
    # the second row of tiles begins at 54, the second column at 64; a cell has 10 pixels
    top, left = canvas.top + 54 + 20, MARGIN + 64 + 40
    changed = np.argwhere((drawn != plain).any(2))
    assert changed.min(0).tolist() == [top - 2, left - 2]
    assert changed.max(0).tolist() == [top + 11, left + 11]
    assert (drawn[top - 1, left : left + 10] == 255).all()
    assert (drawn[top : top + 10, left + 11] == 0).all()
    assert np.array_equal(drawn[top : top + 10, left : left + 10], plain[top : top + 10, left : left + 10])


def figures_made(monkeypatch: pytest.MonkeyPatch) -> list[Canvas]:
    """Collect every canvas that is drawn."""
    made: list[Canvas] = []
    png = Canvas.png

    def collect(canvas: Canvas) -> bytes:
        made.append(canvas)
        return png(canvas)

    monkeypatch.setattr(Canvas, "png", collect)
    return made


def shown(image: AxesImage, fill: float = np.nan) -> np.ndarray:
    """Return the values of a picture that is drawn, with `fill` for those that are masked."""
    values = image.get_array()
    assert isinstance(values, np.ma.MaskedArray)
    return values.filled(fill)


def photograph() -> PreparedImage:
    return PreparedImage("cat", np.zeros((32, 48, 3), np.uint8), np.zeros(0))  # type: ignore[arg-type]


def test_the_brightest_cell_is_the_one_with_the_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    made = figures_made(monkeypatch)
    attention = np.zeros((1, 2, 12, 12), np.float32)
    attention[0, 0, :, 5] = 0.25  # every patch looks at the patch in row 1, column 1 of a grid of 3 x 4
    attention[0, 1, :, 11] = 1
    attention_figures.draw_head_attention(attention, (3, 4), "title", photograph())
    (drawn,) = made[0].figure.axes[0].images
    picture = shown(drawn)
    cell = 88 // 4
    assert (picture[cell : 2 * cell, cell : 2 * cell] == 1).all()
    assert (picture[2 * cell :, -cell:] == 1).all()
    assert (picture == 1).sum() == 2 * cell * cell


def labels_of(canvas: Canvas) -> tuple[list[str], list[str]]:
    panel = canvas.figure.axes[0]
    return [label.get_text() for label in panel.get_yticklabels()], [
        label.get_text() for label in panel.get_xticklabels()
    ]


def test_fusions_are_labelled_with_what_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made = figures_made(monkeypatch)
    small, large = np.full((2, 7), 0.1, np.float32), np.full((3, 25), 0.02, np.float32)
    small[:, 0], large[:, 0] = 0.4, 0.5
    stage = StageAttention(branches=((), ()), fusions=((small,), (large,)))
    attention_figures.draw_fusions([stage], [(4, 6), (2, 3)], "name", photograph())
    rows, columns = labels_of(made[0])
    assert [row.replace("\n", " ") for row in rows] == [
        "stage 0: class token of the small-patch branch reads large patches (itself: 40 %)",
        "stage 0: class token of the large-patch branch reads small patches (itself: 50 %)",
    ]
    assert columns == ["mean", "head 0", "head 1", "head 2"]


def test_titles_say_what_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = figures_made(monkeypatch)
    attention = np.full((12, 16, 4, 4), 0.25, np.float32)
    attention_figures.draw_head_attention(attention, (2, 2), "title")
    grids = [np.random.default_rng(i).normal(size=(100, 4, 4)).astype(np.float32) for i in range(12)]
    kernel_figures.draw_units(grids, "units", "name", paired=True)
    kernel_figures.draw_patch_filters(np.ones((300, 4, 4, 3), np.float32), "name")
    titles = [canvas.figure.texts[0].get_text() for canvas in made]
    assert "10 of 12 blocks" in titles[0]
    assert "9 of 16 heads" in titles[0]
    assert "8 of 12 blocks" in titles[1]
    assert "256 of 300" in titles[2]
    rows, columns = labels_of(made[0])
    assert (rows[0], rows[-1], columns[0], columns[-1]) == ("block 0", "block 11", "head 0", "head 15")
    assert "64 of 100 units" in made[1].figure.axes[0].get_title()


def test_paired_units_are_opposite(monkeypatch: pytest.MonkeyPatch) -> None:
    made = figures_made(monkeypatch)
    rng = np.random.default_rng(0)
    half = rng.normal(size=(8, 4, 4)).astype(np.float32)
    grids = np.concatenate([half, -half])[rng.permutation(16)]
    kernel_figures.draw_units([grids], "units", "name", paired=True)
    picture = shown(made[0].figure.axes[0].images[0])
    tile, gap = 40, 3
    for row in range(2):
        top = row * (tile + gap)
        assert np.allclose(picture[top : top + tile, :tile], -picture[top : top + tile, tile + gap : 2 * tile + gap])


def test_a_patch_that_reads_itself_only_is_the_outlined_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = figures_made(monkeypatch)
    kernel_figures.draw_positions([-np.eye(12, dtype=np.float32).reshape(12, 3, 4)], "name")
    panel = made[0].figure.axes[0]
    picture = shown(panel.images[0], fill=0)
    assert set(np.unique(picture)) == {-1, 0}
    cell = 56 // 4
    for square in panel.collections[1].get_paths():  # the white lines
        corners = np.asarray(square.vertices)
        (left, top), (right, bottom) = corners.min(0) + 1, corners.max(0)
        assert (right - left, bottom - top) == (cell, cell)
        assert (picture[int(top) : int(bottom), int(left) : int(right)] == -1).all()
    assert (picture == -1).sum() == 12 * cell * cell


def drawn_figures(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect every figure that a module renders."""
    made: list[Figure] = []
    render = module.render

    def collect(figure: Figure) -> bytes:
        made.append(figure)
        return render(figure)

    monkeypatch.setattr(module, "render", collect)
    return made


def test_curves_of_non_locality_are_those_of_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn_figures(attention_figures, monkeypatch)
    itself, first = np.eye(4, dtype=np.float32), np.zeros((4, 4), np.float32)
    first[:, 0] = 1  # at distances 0, 1, 1 and the square root of 2 in a grid of 2 x 2
    reach = (2 + np.sqrt(2)) / 4
    tokens = np.zeros((2, 5, 5), np.float32)
    tokens[:, :, 1] = 1
    attention = [np.stack([itself, first]), tokens]
    attention_figures.draw_non_locality(attention, itself[None, None], first[None, None], (2, 2), "name")
    lines = {line.get_label(): line.get_ydata() for line in made[0].axes[0].lines}
    assert lines["one head"] == pytest.approx([0, reach])
    assert lines["attention, mean over the heads"] == pytest.approx([reach / 2, reach])
    assert lines["by position only"] == pytest.approx([0])
    assert lines["by content only"] == pytest.approx([reach])
    assert lines[f"uniform attention ({reach:.2f})"] == pytest.approx([reach, reach])


def test_gates_are_written_into_their_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn_figures(attention_figures, monkeypatch)
    attention_figures.draw_gates(np.array([[0.1, 0.25, 1], [0, 0.5, 0.75]], np.float32), "name")
    table, curve = made[0].axes[:2]
    texts = {text.get_position(): text.get_text() for text in table.texts}
    assert texts == {(0, 0): ".10", (1, 0): ".25", (2, 0): "1.00", (0, 1): ".00", (1, 1): ".50", (2, 1): ".75"}
    means = next(line for line in curve.lines if line.get_label() == "mean over the heads")
    assert means.get_ydata() == pytest.approx([0.45, 1.25 / 3])


def test_the_summary_shows_sparsity_in_percent_and_frequency(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn_figures(kernel_figures, monkeypatch)
    y = np.arange(4) + 0.5
    waves = [np.cos(np.pi * k * y / 4)[:, None] * np.ones(5) for k in (1, 3)]
    grids = [np.stack([wave] * 3).astype(np.float32) for wave in waves]
    kernel_figures.draw_mixing_summary(grids, {"token mixing": [0.25, 0.5]}, 0.05, "name")
    left, right = made[0].axes
    assert left.lines[0].get_ydata() == pytest.approx([25, 50])
    assert right.lines[0].get_ydata() == pytest.approx([1 / 8, 3 / 8], abs=1e-6)


def test_the_reach_of_a_delta_kernel_is_one_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn_figures(kernel_figures, monkeypatch)
    kernels = np.zeros((2, 3, 3, 3), np.float32)
    kernels[0, :, 0, 1] = [-5, 2, 1]
    kernels[1] = [[[1]], [[-1]], [[2]]]
    kernel_figures.draw_reach(kernels, "name")
    first, second = (np.asarray(panel.images[0].get_array()) for panel in made[0].axes[:2])
    assert first[0, 1] == pytest.approx(100)
    assert np.count_nonzero(first) == 1
    assert np.allclose(second, 100 / 9)


@pytest.mark.parametrize("model", ["crossvit_ti_dagger_p4_32.cifar10", "convit_ti_p4_32.cifar10"])
def test_names_are_not_read_as_formulas(model: str) -> None:
    subject = Subject(tessella.load(model))
    subject.name = "a $\\frac{$ name with a\nline break"  # matplotlib would refuse this formula
    ((_, image),) = subject.prepare(ROOT / "examples" / "cat.jpg")
    assert isinstance(image, PreparedImage)
    for _, draw in weight_figures(subject, image):
        assert draw().startswith(b"\x89PNG")


@pytest.mark.parametrize("gate", [0.0, 0.7, 1.0])
def test_gates_that_are_all_equal_are_drawn(gate: float) -> None:
    assert attention_figures.draw_gates(np.full((2, 3), gate, np.float32), "name").startswith(b"\x89PNG")


def test_threads_may_draw_at_once(tmp_path: Path) -> None:
    subject = Subject(tessella.load("crossvit_ti_dagger_p4_32.cifar10"))
    threads = [threading.Thread(target=explain_weights, args=(subject, tmp_path / str(i))) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contents = {tuple(path.read_bytes() for path in sorted((tmp_path / str(i)).iterdir())) for i in range(3)}
    assert len(contents) == 1
