"""Draw the figures of the model families for docs/families: `scripts/bench family_figures`.

Sizes in the figures are those of the configs. The order of norms, activations and sums is that of the code in
`src/tessella/models`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from family_drawing import GAP, ROW, Column, Drawing

from tessella.models.configs import configure
from tessella.models.configs.convit import ConViTConfig
from tessella.models.configs.convmixer import ConvMixerConfig
from tessella.models.configs.crossvit import CrossViTConfig, branch_sizes
from tessella.models.configs.mixer import MixerConfig, hidden_widths

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "families" / "images"
LEFT, TOP = 139.0, 44.0  # middle of the column of boxes, its first row
COLUMN = 190.0  # width of its boxes
SIDE, ROOM = 344.0, 160.0  # middle and width of the pictures beside it


def convmixer() -> Drawing:
    cfg = configure("convmixer_768_32")
    assert isinstance(cfg, ConvMixerConfig)
    side = 224 // cfg.patch_size
    d = Drawing(
        "ConvMixer",
        "A strided convolution turns patches into a map. Each block has a depthwise convolution with its activation, "
        "batch norm and a residual sum, then a pointwise convolution with its activation and batch norm, without one.",
    )
    c = Column(d, LEFT, COLUMN, TOP)
    c.scene(64, 8, ("image", f"e.g. 224 px in {side} x {side}", f"patches of {cfg.patch_size} px"))
    c.box("channel", "Convolution p x p, stride p")
    c.box("plain", "activation, BatchNorm")
    c.begin(f"block, x {cfg.depth}")
    _residual(c, ("space", "Depthwise convolution k x k"), ("plain", "activation, BatchNorm"))
    c.box("channel", "Pointwise convolution 1 x 1")
    c.box("plain", "activation, BatchNorm")
    c.end()
    c.box("space", "Mean over positions")
    c.box("channel", "Linear to classes")

    y = TOP + 40
    d.text(SIDE, y, "Depthwise", room=ROOM)
    grid, kernel = 11, cfg.kernel_size
    low = (grid - kernel) // 2
    middle = grid // 2
    values = [
        [
            (1.0 if (i, j) == (middle, middle) else 0.38)
            if low <= i < low + kernel and low <= j < low + kernel
            else 0.0
            for j in range(grid)
        ]
        for i in range(grid)
    ]
    d.heat_map(SIDE - 61, y + 14, 122, values)
    for i, line in enumerate(("every channel has its own", f"kernel of {kernel} x {kernel} patches")):
        d.text(SIDE, y + 150 + 15 * i, line, "soft", ROOM)
    y += 214
    d.text(SIDE, y, "Pointwise", room=ROOM)
    for layer in range(4, -1, -1):
        x0, y0 = SIDE - 62 + 13 * layer, y + 52 - 9 * layer
        d.rect(x0, y0, 72, 60, "cell", radius=2)
        d.rect(x0 + 30, y0 + 24, 12, 12, "heat-channel", opacity=0.9)
    for i, line in enumerate((f"all {cfg.dim} channels", "of one patch are mixed")):
        d.text(SIDE, y + 130 + 15 * i, line, "soft", ROOM)
    d.height = c.y
    return d


def _mixer_frame(name: str, title: str, description: str) -> tuple[Drawing, Column, MixerConfig, int]:
    """Return a figure of the Mixer family with the picture and the patch embedding."""
    cfg = configure(name)
    assert isinstance(cfg, MixerConfig)
    side = _side(cfg.img_size) // cfg.patch_size
    d = Drawing(title, description)
    c = Column(d, LEFT, COLUMN, TOP)
    c.scene(64, 7, ("image", f"e.g. {_side(cfg.img_size)} px in N = {side * side}", f"patches of {cfg.patch_size} px"))
    c.box("channel", "Linear map of each patch", f"N tokens of width D, e.g. {side * side} x {cfg.embed_dim}")
    return d, c, cfg, side * side


def _side(img_size: int | Sequence[int]) -> int:
    return img_size if isinstance(img_size, int) else img_size[0]


def _residual(c: Column, *boxes: Sequence[str]) -> None:
    """Draw boxes with a residual connection around them; each is its kind and its lines."""
    c.fork()
    for kind, *lines in boxes:
        c.box(kind, *lines)
    c.join()


def _pooling(c: Column, norm: str = "LayerNorm") -> None:
    c.box("plain", norm)
    c.box("space", "Mean over patches")
    c.box("channel", "Linear to classes")


def _matrices(d: Drawing, y: float, first: Sequence[str], second: Sequence[str]) -> float:
    """Draw what is mixed as a column and as a row of the token matrix; return the end."""
    cell, shape = 12.0, (8, 9)
    left = SIDE - shape[1] * cell / 2
    for title, kind, marked, lines in (
        ("Across patches", "space", [(row, 3) for row in range(shape[0])], first),
        ("Across channels", "channel", [(4, column) for column in range(shape[1])], second),
    ):
        d.text(SIDE, y, title, room=ROOM)
        d.matrix(left, y + 32, shape, cell, kind, marked)
        d.text(SIDE, y + 20, "D channels", "soft")
        d.text(left - 8, y + 32 + shape[0] * cell / 2, "N", "soft")
        end = y + 32 + shape[0] * cell
        for i, line in enumerate(lines):
            d.text(SIDE, end + 14 + 15 * i, line, "soft", ROOM)
        y = end + 14 + 15 * len(lines) + 22
    return y


def mlp_mixer() -> Drawing:
    d, c, cfg, count = _mixer_frame(
        "mixer_b16_224",
        "MLP-Mixer",
        "Tokens pass blocks with two residual parts: LayerNorm and an MLP across patches, then LayerNorm and an MLP "
        "across channels. LayerNorm, the mean over patches and a linear layer follow.",
    )
    tokens, channels = hidden_widths(cfg)
    c.begin(f"block, x {cfg.num_blocks}")
    _residual(c, ("plain", "LayerNorm"), ("space", "MLP across patches", f"{count} to {tokens}, GELU, to {count}"))
    _residual(
        c,
        ("plain", "LayerNorm"),
        ("channel", "MLP across channels", f"{cfg.embed_dim} to {channels}, GELU, to {cfg.embed_dim}"),
    )
    c.end()
    _pooling(c)
    _matrices(
        d,
        TOP + 62,
        ("one MLP reads each column,", "the same for all channels"),
        ("one MLP reads each row,", "the same for all patches"),
    )
    d.height = c.y
    return d


def gmixer() -> Drawing:
    d, c, cfg, count = _mixer_frame(
        "gmixer_24_224",
        "gMixer",
        "The blocks of MLP-Mixer with gated MLPs: the first linear layer gives two halves, and the first is multiplied "
        "by the SiLU of the second before the last linear layer.",
    )
    tokens, channels = hidden_widths(cfg)
    c.begin(f"block, x {cfg.num_blocks}")
    _residual(c, ("plain", "LayerNorm"), ("space", "Gated MLP across patches", f"N = {count}, {tokens} hidden units"))
    _residual(
        c,
        ("plain", "LayerNorm"),
        ("channel", "Gated MLP across channels", f"D = {cfg.embed_dim}, {channels} hidden units"),
    )
    c.end()
    _pooling(c)

    y = TOP + 110
    d.rect(SIDE - 81, y - 20, 162, 322, "panel", radius=9)
    d.text(SIDE, y - 4, "Gated MLP", room=ROOM)
    d.box(SIDE - 66, y + 14, 132, ROW, "both", ("Linear",))
    halves = SIDE - 40, SIDE + 40
    for x, text in zip(halves, ("value", "gate"), strict=True):
        d.wire((x, y + 14 + ROW), (x, y + 70))
        d.box(x - 30, y + 71, 60, ROW, "gate" if text == "gate" else "plain", (text,))
    d.wire((halves[1], y + 100), (halves[1], y + 114))
    d.box(halves[1] - 30, y + 115, 60, ROW, "gate", ("SiLU",))
    product = y + 170
    d.wire((halves[0], y + 100), (halves[0], product), (SIDE - 9.5, product))
    d.wire((halves[1], y + 144), (halves[1], product), (SIDE + 9.5, product))
    d.operator(SIDE, product, "x")
    d.wire((SIDE, product + 8.5), (SIDE, product + 24))
    d.box(SIDE - 66, product + 25, 132, ROW, "both", ("Linear",))
    for i, line in enumerate(("each half has half of the", "hidden units; the gate is", "the second half")):
        d.text(SIDE, product + 76 + 15 * i, line, "soft", ROOM)
    d.height = c.y
    return d


def resmlp() -> Drawing:
    d, c, cfg, count = _mixer_frame(
        "resmlp_24_224",
        "ResMLP",
        "Blocks with two residual parts: Affine, one linear layer across patches and a scale per channel; then Affine, "
        "an MLP across channels and a scale per channel. Affine, the mean over patches and a linear layer follow.",
    )
    channels = hidden_widths(cfg)[1]
    c.begin(f"block, x {cfg.num_blocks}")
    _residual(
        c,
        ("plain", "Affine"),
        ("space", "Linear across patches", f"{count} x {count} weights"),
        ("plain", "scale per channel"),
    )
    _residual(
        c,
        ("plain", "Affine"),
        ("channel", "MLP across channels", f"{cfg.embed_dim} to {channels}, GELU, to {cfg.embed_dim}"),
        ("plain", "scale per channel"),
    )
    c.end()
    _pooling(c, "Affine")

    y = TOP + 84
    d.text(SIDE, y, "Across patches", room=ROOM)
    grid = 7
    weights = [[0.12 + 0.75 * math.exp(-((i - 2) ** 2 + (j - 4) ** 2) / 3.0) for j in range(grid)] for i in range(grid)]
    d.heat_map(SIDE - 78, y + 22, 64, weights)
    d.wire((SIDE - 9, y + 54), (SIDE + 9, y + 54))
    d.heat_map(SIDE + 14, y + 22, 64, [[1.0 if (i, j) == (2, 4) else 0 for j in range(grid)] for i in range(grid)])
    for i, line in enumerate(("a patch becomes a weighted", "sum of all patches: one row", "of the matrix (sketch)")):
        d.text(SIDE, y + 104 + 15 * i, line, "soft", ROOM)
    y += 190
    d.text(SIDE, y, "Affine", room=ROOM)
    d.box(SIDE - 66, y + 16, 132, ROW, "plain", ("\u03b1 x + \u03b2",))
    for i, line in enumerate(
        ("a scale and a shift per", "channel; no mean and no", "variance, so they fold", "into the weights")
    ):
        d.text(SIDE, y + 62 + 15 * i, line, "soft", ROOM)
    d.height = c.y
    return d


def gmlp() -> Drawing:
    d, c, cfg, count = _mixer_frame(
        "gmlp_s16_224",
        "gMLP",
        "Each block has one residual part: LayerNorm, a linear layer and GELU, then two halves. The second half passes "
        "LayerNorm and a linear layer across patches and multiplies the first. A linear layer follows.",
    )
    hidden = hidden_widths(cfg)[0]
    c.begin(f"block, x {cfg.num_blocks}")
    c.fork()
    c.box("plain", "LayerNorm")
    c.box("channel", "Linear across channels", f"{cfg.embed_dim} to {hidden}")
    c.box("plain", "GELU")
    # the spatial gating unit: the halves u and v
    u, v, top = LEFT - 64, LEFT + 34, c.y
    d.wire((u, top), (u, top + GAP - 1))
    d.wire((v, top), (v, top + GAP - 1))
    d.box(u - 31, top + GAP, 62, ROW, "plain", (f"u: {hidden // 2}",))
    d.box(v - 61, top + GAP, 122, ROW, "plain", (f"v: {hidden // 2}",))
    d.wire((v, top + GAP + ROW), (v, top + 2 * GAP + ROW - 1))
    d.box(v - 61, top + 2 * GAP + ROW, 122, ROW, "plain", ("LayerNorm",))
    d.wire((v, top + 2 * (GAP + ROW)), (v, top + 3 * GAP + 2 * ROW - 1))
    d.box(v - 61, top + 3 * GAP + 2 * ROW, 122, ROW + 13, "space", ("Linear", f"across {count} patches"))
    product = top + 3 * (GAP + ROW) + 13 + GAP + 7
    d.wire((v, top + 3 * (GAP + ROW) + 13), (v, product), (LEFT + 9.5, product))
    d.wire((u, top + GAP + ROW), (u, product), (LEFT - 9.5, product))
    d.operator(LEFT, product, "x")
    c.y = product + 8.5
    c.box("channel", "Linear across channels", f"{hidden // 2} to {cfg.embed_dim}")
    c.join()
    c.end()
    _pooling(c)

    y = TOP + 176
    d.text(SIDE, y, "Spatial gating unit", room=ROOM)
    cell, shape = 12.0, (8, 5)
    left, right = SIDE - 74, SIDE + 14
    d.matrix(left, y + 36, shape, cell, "plain", [(5, 2)])
    d.matrix(right, y + 36, shape, cell, "space", [(row, 2) for row in range(shape[0])])
    d.text(left + 30, y + 24, "u", "soft")
    d.text(right + 30, y + 24, "v", "soft")
    d.operator(SIDE, y + 36 + 66, "x")
    lines = (
        "the value of u at a patch is",
        "multiplied by a weighted sum",
        "over all patches of v, in the",
        "same channel; at the start,",
    )
    for i, line in enumerate((*lines, "the factor is 1")):
        d.text(SIDE, y + 152 + 15 * i, line, "soft", ROOM + 14)
    d.height = c.y
    return d


def _normalized(scores: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return the softmax over all entries."""
    powers = [[math.exp(score) for score in row] for row in scores]
    total = sum(map(sum, powers))
    return [[value / total for value in row] for row in powers]


def _shown(values: Sequence[Sequence[float]], largest: float) -> list[list[float]]:
    return [[value / largest for value in row] for row in values]


def convit() -> Drawing:
    cfg = configure("convit_base")
    assert isinstance(cfg, ConViTConfig)
    local, width = cfg.local_up_to_layer, cfg.embed_dim * cfg.num_heads
    count = (_side(cfg.img_size) // cfg.patch_size) ** 2
    d = Drawing(
        "ConViT",
        "Patches with a position embedding pass blocks with gated positional self-attention and an MLP, each after "
        "LayerNorm and with a residual sum. Then the class token is added, two blocks with standard attention follow, "
        "and LayerNorm and a linear layer read the class token.",
    )
    c = Column(d, LEFT, COLUMN, TOP)
    c.scene(64, 7, ("image", f"{_side(cfg.img_size)} px in {count}", f"patches of {cfg.patch_size} px"))
    c.box("channel", "Linear map of each patch", f"+ position embedding, {count} x {width}")
    c.begin(f"block, x {local}")
    _residual(c, ("plain", "LayerNorm"), ("space", "Gated positional attention", f"{cfg.num_heads} heads"))
    _residual(
        c,
        ("plain", "LayerNorm"),
        ("channel", "MLP across channels", f"{width} to {int(width * cfg.mlp_ratio)}, GELU, to {width}"),
    )
    c.end()
    c.box("plain", "class token joins the patches")
    c.box("both", "Standard transformer block", f"x {cfg.depth - local}: attention, then MLP")
    c.box("plain", "LayerNorm, class token")
    c.box("channel", "Linear to classes")

    gate = 1 / (1 + math.exp(-1.0))
    grid, row, column = 7, 3, 2  # the patch that attends
    # attention by position of a newly initialized head that looks at the right-hand neighbor, for `locality_strength` 1
    position = _normalized(
        [[2 * (j - column) - ((i - row) ** 2 + (j - column) ** 2) for j in range(grid)] for i in range(grid)]
    )
    content = _normalized(
        [[2.2 * math.sin(1.1 * i + 0.4) * math.cos(1.3 * j - 0.5) for j in range(grid)] for i in range(grid)]
    )
    blend = [
        [(1 - gate) * a + gate * b for a, b in zip(one, two, strict=True)]
        for one, two in zip(content, position, strict=True)
    ]
    side, y = 82.0, TOP + 14
    for title, values, lines in (
        ("By content", content, ("softmax of q \u00b7 k (sketch)", f"share 1 \u2212 g = {1 - gate:.2f} at the start")),
        ("By position", position, ("fixed by the weights", f"share g = \u03c3(\u03bb) = {gate:.2f} at the start")),
        ("Gated sum", blend, ("one gate per head: training", "decides how local it stays")),
    ):
        d.text(SIDE, y, title, room=ROOM)
        largest = max(max(map(max, position)), max(map(max, content))) * (0.55 if values is content else 1)
        d.heat_map(SIDE - side / 2, y + 14, side, _shown(values, largest), "gate" if values is blend else "space")
        cell = side / grid
        d.rect(SIDE - side / 2 + column * cell + 0.6, y + 14 + row * cell + 0.6, cell - 1.2, cell - 1.2, "wire")
        for i, line in enumerate(lines):
            d.text(SIDE, y + side + 30 + 15 * i, line, "soft", ROOM + 14)
        y += side + 76
    d.text(SIDE, y - 10, "outlined: the attending patch", "soft", ROOM + 10)
    d.height = c.y
    return d


def crossvit() -> Drawing:
    cfg = configure("crossvit_9_240")
    assert isinstance(cfg, CrossViTConfig)
    image = _side(cfg.img_size)
    sizes = [size[0] for size in branch_sizes((image, image), cfg)]
    sides = [size // patch for size, patch in zip(sizes, cfg.patch_size, strict=True)]
    d = Drawing(
        "CrossViT",
        "Two branches read the image in small and in large patches. In each of three stages, both run transformer "
        "blocks, then the class token of each branch attends to the patches of the other one and replaces the old one. "
        "The logits are the mean of both heads.",
    )
    xs, width = (112.0, 328.0), 172.0
    columns = [Column(d, x, width, TOP) for x in xs]
    notes = (
        (f"{image} px, {sides[0] ** 2} patches", f"of {cfg.patch_size[0]} px"),
        (f"resized to {sizes[1]} px,", f"{sides[1] ** 2} of {cfg.patch_size[1]} px"),
    )
    for b, c in enumerate(columns):
        c.scene(64, sides[b], notes[b])
        c.box("channel", "Linear map of each patch", f"+ class token; width {cfg.embed_dim[b]}")
    top = columns[0].y + 10
    index = len(d.parts)
    for b, c in enumerate(columns):
        blocks = cfg.depth[0][b]
        c.box("both", "Transformer block", f"x {blocks}: attention, then MLP", gap=40)
    split = columns[0].y
    tokens = (xs[0] - width / 2 + 42, xs[1] + width / 2 - 42)
    rows = [split + GAP + 6, split + 74, split + 134, split + 214]
    for b, x in enumerate(xs):
        other, inner, outer = 1 - b, (x + 52 if b == 0 else x - 52), tokens[b]
        d.wire((outer, split), (outer, rows[0] - 1))
        d.wire((inner, split), (inner, rows[0] - 1))
        d.box(outer - 42, rows[0], 84, ROW, "plain", ("class token",))
        d.box(inner - 34, rows[0], 68, ROW, "plain", ("patches",))
        d.wire((outer, rows[0] + ROW), (outer, rows[1] - 1))
        d.box(x - width / 2, rows[1], width, ROW, "channel", (f"norm, GELU, to width {cfg.embed_dim[other]}",))
        fork = rows[1] + ROW + 9
        d.wire((outer, rows[1] + ROW), (outer, rows[2] - 1))
        d.box(
            x - width / 2,
            rows[2],
            width,
            ROW + 13,
            "space",
            ("Cross-attention", f"norm, then 1 + {sides[other] ** 2} tokens"),
        )
        edge = x - width / 2 - 9 if b == 0 else x + width / 2 + 9
        total = rows[2] + ROW + 13 + 20
        d.wire((outer, rows[2] + ROW + 13), (outer, total - 9.5))
        d.operator(outer, total, "+")
        d.wire((outer, fork), (edge, fork), (edge, total), (outer + (-9.5 if b == 0 else 9.5), total))
        d.wire((outer, total + 8.5), (outer, rows[3] - 1))
        d.box(x - width / 2, rows[3], width, ROW, "channel", (f"norm, GELU, to width {cfg.embed_dim[b]}",))
    # the patches of each branch go to the cross-attention of the other one
    _cross(d, xs, rows, width)
    end = rows[3] + ROW
    for x in xs:
        d.text(x, end + 14, "replaces the class token", "soft", width)
    before = len(d.parts)
    d.rect(8, top, 424, end + 28 - top, "panel", radius=9)
    d.text(18, top + 12, f"stage, x {len(cfg.depth)}", "small left")
    background = d.parts[before:]
    del d.parts[before:]
    d.parts[index:index] = background
    for c in columns:
        c.y = end + 28
        c.box("channel", "norm, linear to classes", "of the class token", gap=GAP + 2)
    middle = sum(xs) / 2
    total = columns[0].y + 26
    for c in columns:
        d.wire((c.x, c.y), (c.x, total), (middle + (-62 if c.x < middle else 62), total))
    d.box(middle - 60, total - ROW / 2, 120, ROW, "plain", ("mean of both",))
    d.height = total + ROW / 2
    return d


def _cross(d: Drawing, xs: Sequence[float], rows: Sequence[float], width: float) -> None:
    """Draw the two crossing wires between the branches, in the space between them."""
    left, right = xs[0] + width / 2, xs[1] - width / 2
    gap = right - left
    start, end = rows[0] + ROW / 2, rows[2] + (ROW + 13) / 2
    for inner, far, lane in (
        (xs[0] + 52 + 34, right, left + gap * 0.3),
        (xs[1] - 52 - 34, left, right - gap * 0.3),
    ):
        direction = 1 if far == right else -1
        other_lane = lane + direction * gap * 0.4
        d.wire(
            (inner, start), (lane, start), (lane, start + 16), (other_lane, start + 52), (other_lane, end), (far, end)
        )


FIGURES: dict[str, Callable[[], Drawing]] = {  # by the name of the page
    "convmixer": convmixer,
    "convit": convit,
    "crossvit": crossvit,
    "mlp-mixer": mlp_mixer,
    "gmixer": gmixer,
    "resmlp": resmlp,
    "gmlp": gmlp,
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        path = FOLDER / f"{name}.svg"
        text = draw().svg()
        path.write_text(text, encoding="utf-8")
        print(f"{path.name}: {len(text.encode()) / 1024:.1f} kB")


if __name__ == "__main__":
    main()
