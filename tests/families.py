"""Write the generated parts of docs/families from the package's own data; `scripts/families` runs this.

A part begins with `<!-- generated: NAME -->` and ends with `<!-- end -->`. With --check, nothing is written, and
the exit status is 1 if a page is not what would be written.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tessella.cards.comparison import MACHINES, SETS, ModelRow, compare_models
from tessella.models.configs import CONFIGS, FamilyConfig
from tessella.models.configs.convit import ConViTConfig
from tessella.models.configs.convmixer import ConvMixerConfig
from tessella.models.configs.crossvit import CrossViTConfig
from tessella.models.configs.mixer import MixerConfig, hidden_widths
from tessella.weights.card_text import markdown_table
from tessella.weights.catalogue import (
    ARCHITECTURE_NAMES,
    CATALOGUE,
    OWN_ARCHITECTURES,
    Checkpoint,
    get_arch_pretrained_cfgs,
)
from tessella.weights.costs import in_units, read_costs
from tessella.weights.origins import FAMILIES, Paper, known_errors, origin_of

from .promises import newest
from .structure import ROOT

FOLDER, RESULTS = ROOT / "docs" / "families", ROOT / "benchmarks" / "results"
PAGES = {  # the name of a page: the first word of its architectures
    "convmixer": "convmixer",
    "convit": "convit",
    "crossvit": "crossvit",
    "mlp-mixer": "mixer",
    "gmixer": "gmixer",
    "resmlp": "resmlp",
    "gmlp": "gmlp",
}
MIXES = {  # how positions exchange information, and which image sizes a model can be built for
    "convmixer": ("depthwise convolutions", "any of at least one patch, also without rebuilding"),
    "convit": ("attention by content and by position, with a gate", "multiples of 16 px"),
    "crossvit": (
        "attention in two branches, cross-attention between them",
        "those that the patches of both branches divide, such as 120 or 360 px",
    ),
    "mixer": ("an MLP across patches", "multiples of the patch"),
    "gmixer": ("a gated MLP across patches", "multiples of 16 px"),
    "resmlp": ("one matrix across patches", "multiples of the patch"),
    "gmlp": ("a gate that is a weighted sum over patches", "multiples of 16 px"),
}
_PART = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def page_text(text: str, word: str) -> str:
    """Return a page with new generated parts. word: the first word of the family's architectures, "" for the index.

    Raises KeyError for a part that is not known.
    """
    return _PART.sub(lambda match: f"{match[1]}\n{PARTS[match[2]](word)}\n\n{match[3]}", text)


# --- papers and errors ------------------------------------------------------------------------------------------------


def papers(word: str) -> str:
    """Return the papers of a family, one per item."""
    return "\n".join(f"- {_citation(paper)}" for paper in FAMILIES[word][1])


def _citation(paper: Paper) -> str:
    venue = f"{paper.venue}, " if paper.venue else ""
    return f"{', '.join(paper.authors)}: *{paper.title}*. {venue}{paper.year}, [arXiv:{paper.arxiv}]({paper.url})."


def errors(word: str) -> str:
    """Return what is known to be wrong or surprising about the published checkpoints, with those that it concerns."""
    rows = [row for row in _checkpoints(word) if row.hf_hub_id]
    concerned: dict[str, list[str]] = {}
    for row in rows:
        for error in known_errors(row):
            concerned.setdefault(error, []).append(row.name)
    lines = []
    for error, names in concerned.items():
        which = "all" if len(names) == len(rows) > 1 else ", ".join(f"`{name}`" for name in names)
        lines.append(f"- {error} ({which})")
    return "\n".join(lines) or "Nothing is known to be wrong with the published checkpoints."


# --- tables -----------------------------------------------------------------------------------------------------------


def _checkpoints(word: str) -> list[Checkpoint]:
    names = [row.name for row in compare_models([f"{word}_*"], measured={})]
    return [CATALOGUE[name] for name in names if CATALOGUE[name].has_weights]


def variants(word: str) -> str:
    """Return the architectures of a family with their sizes and costs."""
    names = [name for name in ARCHITECTURE_NAMES if name.partition("_")[0] == word]
    rows = []
    header: tuple[str, ...] = ()
    for name in names:
        shown = dict(_settings(CONFIGS[name]))
        facts = read_costs()[next(iter(get_arch_pretrained_cfgs(name)), name)]
        header = ("architecture", *shown, "px", "params (M)", "GMACs", "activations (M)")
        costs = (in_units(facts["params"], 1e6), in_units(facts["macs"], 1e9), in_units(facts["activations"], 1e6))
        own = " (this project)" if name in OWN_ARCHITECTURES else ""
        rows.append((f"`{name}`{own}", *shown.values(), str(facts["input_size"][2]), *costs))
    return markdown_table(header, rows)


def _settings(cfg: FamilyConfig) -> Iterable[tuple[str, str]]:
    """Yield what distinguishes the architectures of a family."""
    if isinstance(cfg, ConvMixerConfig):
        yield from (("width", f"{cfg.dim:,}"), ("blocks", str(cfg.depth)), ("kernel", str(cfg.kernel_size)))
        yield from (("patch, px", str(cfg.patch_size)), ("activation", {"relu": "ReLU", "gelu": "GELU"}[cfg.act_layer]))
    elif isinstance(cfg, ConViTConfig):
        local = cfg.local_up_to_layer
        yield from (("width", str(cfg.embed_dim * cfg.num_heads)), ("heads", str(cfg.num_heads)))
        yield from (("blocks, gated + standard", f"{local} + {cfg.depth - local}"), ("patch, px", str(cfg.patch_size)))
    elif isinstance(cfg, CrossViTConfig):
        first, second = ("/".join(str(depth[b]) for depth in cfg.depth) for b in (0, 1))
        yield from (
            ("widths", _pair(cfg.embed_dim)),
            ("heads", _pair(cfg.num_heads)),
            ("patches, px", _pair(cfg.patch_size)),
        )
        yield "blocks per stage", f"{first} and {second}"
        yield "patch embedding", "3 convolutions" if cfg.multi_conv else "linear"
    else:
        assert isinstance(cfg, MixerConfig)
        tokens, channels = hidden_widths(cfg)
        yield from (
            ("width", f"{cfg.embed_dim:,}"),
            ("blocks", str(cfg.num_blocks)),
            ("patch, px", str(cfg.patch_size)),
        )
        if cfg.kind in ("mixer", "gmixer"):
            yield "hidden units across patches", str(tokens)
        yield "hidden units across channels", f"{channels:,}"


def _pair(values: Sequence[float]) -> str:
    return " and ".join(map(str, values))


def checkpoints(word: str) -> str:
    """Return the checkpoints with weights: how they were trained, and what their images look like."""
    rows = [
        (
            f"`{row.name}`",
            origin_of(row).trained,
            f"{row.num_classes:,}",
            _normalization(row),
            f"{row.interpolation}, {row.crop_pct:g}",
            row.license,
        )
        for row in _checkpoints(word)
    ]
    header = ("checkpoint", "weights", "classes", "normalization", "resize, crop", "license")
    return "\n".join(
        [
            f"| {' | '.join(header)} |",
            "| --- | --- | --: | --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
    )


def _normalization(row: Checkpoint) -> str:
    """Return the name of the constants of (pixel - mean) / std, for pixels from 0 to 1."""
    known: dict[tuple[tuple[float, ...], tuple[float, ...]], str] = {
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)): "ImageNet",
        ((0.5,) * 3, (0.5,) * 3): "mean 0.5, std 0.5",
        ((0.0,) * 3, (1.0,) * 3): "none: pixels from 0 to 1",
        ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)): "CIFAR-10",
    }
    return known[row.mean, row.std]


def accuracy(word: str) -> str:
    """Return the published accuracy and speed of the checkpoints, the most accurate one first."""
    rows = [row for row in compare_models([f"{word}_*"], sort="accuracy", measured={}) if row.imagenet]
    header = ("checkpoint", *(f"{name}" for name in SETS.values()), MACHINES["rtx-4090"][0], MACHINES["i9-10940x"][0])
    return markdown_table(header, [_accuracy_cells(row) for row in rows])


def _accuracy_cells(row: ModelRow) -> tuple[str, ...]:
    values = (row.accuracy.get(key) for key in SETS)
    speeds = (row.speed("rtx-4090"), row.speed("i9-10940x"))
    return (f"`{row.name}`", *("" if value is None else f"{value:.2f}" for value in values), *map(_rate, speeds))


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


# --- measured speed ---------------------------------------------------------------------------------------------------


@functools.cache
def _benchmark() -> tuple[Path, list[dict[str, str]]]:
    """Return the benchmark that the README quotes: the path of its file, and its speeds."""
    match = re.search(r"<!-- speed: begin, from (\S+\.csv)", (ROOT / "README.md").read_text())
    assert match is not None
    path = RESULTS / match[1]
    return path, [row for row in _csv_rows(path) if row["kind"] == "speed" and row["value"]]


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def speed(word: str) -> str:
    """Return the speeds that this project measured, and their conditions."""
    return "\n\n".join(text for text in (_large_speed(word), _own_speed(word), _served_speed(word)) if text)


def _large_speed(word: str) -> str:
    path, rows = _benchmark()
    rows = [row for row in rows if row["model"].partition("_")[0] == word]
    if not rows:
        return ""
    stock = max(
        (row for row in rows if row["precision"] == "float32" and row["candidate"] not in ("eager", "Tessella")),
        key=lambda row: (int(row["batch"]), float(row["value"])),
    )["candidate"]
    candidates = (
        ("eager", "float32", "eager PyTorch, as in timm, float32"),
        (stock, "float32", f"best other engine: {stock.removeprefix('stock ')}, float32"),
        ("Tessella", "float32", "**Tessella, default, float32**"),
        ("Tessella", "bfloat16", "Tessella, bfloat16"),
        ("Tessella", "int8", "Tessella, int8"),
    )
    table = []
    for candidate, precision, label in candidates:
        found = {row["batch"]: row for row in rows if (row["candidate"], row["precision"]) == (candidate, precision)}
        eight, one = found["8"], found["1"]
        rates = (f"{float(row['value']):.3g}" for row in (eight, one))
        table.append((label, *rates, f"{float(eight['ratio_to_eager']):.2f}", _gate(eight["gate"])))
    first = rows[0]
    header = (
        "",
        "batch size 8, images/s",
        "batch size 1, images/s",
        "times eager, batch size 8",
        "[precision gate](../guide/speed.md#precision)",
    )
    return (
        f"`{first['model']}` with {first['weights']} weights on an {first['cpu']} (`{first['cpu_class']}`) with "
        f"{first['threads']} threads, medians of {_span(rows)} alternating rounds, each batch size in one run "
        f"({first['date']}, [file](../../benchmarks/results/{path.name}), "
        "[conditions](../guide/speed.md#measured)):\n\n" + markdown_table(header, table)
    )


def _gate(text: str) -> str:
    return text.partition(":")[0]


def _span(rows: Sequence[dict[str, str]]) -> str:
    counts = sorted({int(row["n"]) for row in rows})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _own_speed(word: str) -> str:
    """Return the speeds of the built-in models of a family; "" if there are none."""
    path = max(RESULTS.glob("photographs_*.csv"), key=lambda path: (not path.stem.endswith("_test"), path.name))
    rows = [row for row in _csv_rows(path) if row["model"].partition("_")[0] == word and row["images_per_second"]]
    rows = [row for row in rows if row["model"] in CATALOGUE]
    if not rows:
        return ""
    rates = [f"`{row['model']}` {_rate(float(row['images_per_second']))} images/s at {row['input']} px" for row in rows]
    first = rows[0]
    return (
        f"Built-in models: {'; '.join(rates)}. Default engine on decoded pixels, {first['precision']}, medians of "
        f"{first['rounds']} rounds in which all built-in models take turns, {first['threads']} threads "
        f"({first['date']}, [file](../../benchmarks/results/{path.name}))."
    )


def _served_speed(word: str) -> str:
    """Return the rate of a server with a model of the family; "" if none was measured."""
    if word != "resmlp":
        return ""
    path = newest("soak-serve-overload-resmlp_*.json")
    report = json.loads(path.read_text())
    how = report["conditions"]
    return (
        f"`tessella serve` with `{how['model'].replace(',', '`,')}, float32: {report['overload']['capacity']}, "
        f"with {how['clients']} clients and the load generator on the same {how['cores']} cores "
        f"([file](../../benchmarks/results/{path.name})). `scripts/bench cpu` did not measure this family."
    )


# --- the index --------------------------------------------------------------------------------------------------------


def families(word: str = "") -> str:
    """Return the table that compares the families."""
    header = (
        *("family", "positions are mixed by", "image sizes", "checkpoints", "params (M)"),
        *("ImageNet-1k top-1, published", "built-in model"),
    )
    lines = [f"| {' | '.join(header)} |", "| --- | --- | --- | --: | --: | --: | --- |"]
    for page, first in PAGES.items():
        rows = [row for row in compare_models([f"{first}_*"], measured={}) if row.weights not in ("none", "built in")]
        own = [row.name for row in compare_models([f"{first}_*"], measured={}) if row.weights == "built in"]
        top1 = [row.imagenet for row in rows if row.imagenet]
        cells = (
            f"[{FAMILIES[first][0]}]({page}.md)",
            *MIXES[first],
            str(len(rows)),
            _range([row.params / 1e6 for row in rows if row.classes == 1000]),
            f"{_range(top1)} %",
            ", ".join(f"`{name}`" for name in own) or "none",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.1f}", f"{max(values):.1f}"
    return low if low == high else f"{low} to {high}"


PARTS: dict[str, Callable[[str], str]] = {
    "papers": papers,
    "errors": errors,
    "variants": variants,
    "checkpoints": checkpoints,
    "accuracy": accuracy,
    "speed": speed,
    "families": families,
}


def pages() -> dict[Path, str]:
    """Return the first word of the architectures by page, "" for the index."""
    return {FOLDER / "index.md": "", **{FOLDER / f"{page}.md": word for page, word in PAGES.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/families", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    stale = []
    for path, word in pages().items():
        text = path.read_text(encoding="utf-8")
        new = page_text(text, word)
        if new != text:
            stale.append(path.name)
            if not args.check:
                path.write_text(new, encoding="utf-8")
    print(
        f"{'not up to date' if args.check else 'written'}: {', '.join(stale)}" if stale else "all pages are up to date"
    )
    sys.exit(bool(stale) and args.check)


if __name__ == "__main__":
    main()
