"""Write the text of a model card: the metadata that the Hub reads, and sections in the order of timm's cards.

What a card says is collected by its callers: `save` for a model that is written, `tessella.cards` for everything else.
All text of a card that comes from a file is escaped, so it can add neither metadata nor markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..data.spec import resolve_data_config
from ..models.configs import FamilyConfig
from ..text import escape_line
from .catalogue import OWN_ARCHITECTURES, PretrainedCfg
from .costs import ModelFacts, in_units
from .estimate import estimate
from .origins import FAMILIES, TIMM_BIBTEX, Paper

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

HUB_LICENSES = frozenset(  # identifiers that the Hub accepts and that people use for vision models
    (
        *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "mpl-2.0", "unlicense"),
        *("wtfpl", "zlib", "gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "epl-2.0"),
        *("eupl-1.1", "ecl-2.0", "artistic-2.0", "bsl-1.0", "ms-pl", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0"),
        *("cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
        *("cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "pddl", "odc-by", "odbl", "openrail", "openrail++"),
        *("creativeml-openrail-m", "other", "unknown"),
    )
)
THIS_FOLDER = "local-dir:path/to/this/folder"  # the name of a saved model in its examples
PHOTO = "photo.jpg"  # the image in the examples of a card


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a card: a heading without its #, and Markdown."""

    heading: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a model card says.

    title: the name of the model. summary: what it is, as Markdown. license: None if it is not stated. datasets: names
    on the Hub. results: for the Hub's own table. details: (label, text) pairs; a text of several lines is a list.
    timm: timm loads the model, too. classifies: False if its predicted classes should not be relied on.
    """

    title: str
    summary: str
    details: Sequence[tuple[str, str | Sequence[str]]]
    sections: Sequence[Section]
    license: str | None = None
    datasets: Sequence[str] = ()
    results: Sequence[EvalResult] = ()
    timm: bool = False
    classifies: bool = True


def render(facts: CardFacts) -> str:
    """Return a card: YAML between two lines of ---, then Markdown."""
    from huggingface_hub import ModelCardData

    license_id, license_name = _hub_license(facts.license)
    data = ModelCardData(
        tags=["image-classification", "tessella", *(["timm"] if facts.timm else [])],
        pipeline_tag="image-classification" if facts.classifies else "image-feature-extraction",
        library_name="timm" if facts.timm else "tessella",
        datasets=list(facts.datasets) or None,
        model_name=facts.title if facts.results else None,
        eval_results=list(facts.results) or None,
        license=license_id,
        license_name=license_name,
    )
    lines = ["---", data.to_yaml().strip(), "---", f"# Model card for {escape_line(facts.title)}", "", facts.summary]
    lines += ["", "## Model details", ""]
    for label, text in facts.details:
        if isinstance(text, str):
            lines.append(f"- **{label}:** {text}")
        else:
            lines += [f"- **{label}:**", *(f"  - {line}" for line in text)]
    for section in facts.sections:
        lines += ["", f"## {section.heading}", "", section.text.strip("\n")]
    return "\n".join(lines) + "\n"


def _hub_license(name: str | None) -> tuple[str | None, str | None]:
    """Return the metadata `license` and `license_name`; the Hub wants a license that it does not know as `other`."""
    if not name:
        return None, None
    if name.lower() in HUB_LICENSES:
        return name.lower(), None
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:96]
    return "other", slug or "unnamed"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table: the first column on the left, numbers on the right; cells are Markdown already."""
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join(['---', *['--:'] * (len(header) - 1)])} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def stats(facts: ModelFacts) -> list[str]:
    """Return parameters, multiply-adds, activations and image size, as on timm's cards."""
    _, height, width = facts["input_size"]
    return [
        f"Params (M): {in_units(facts['params'], 1e6)}",
        f"GMACs: {in_units(facts['macs'], 1e9)}",
        f"Activations (M): {in_units(facts['activations'], 1e6)}",
        f"Image size: {width} x {height}",
    ]


def preprocessing(cfg: PretrainedCfg) -> str:
    """Return how an image becomes the input; fields that a config lacks have timm's defaults."""
    spec = resolve_data_config(pretrained_cfg=cfg)
    mean, std = (", ".join(f"{value:g}" for value in spec[key]) for key in ("mean", "std"))
    return f"{spec['interpolation']}, crop {spec['crop_pct']:g} ({spec['crop_mode']}), mean {mean}, std {std}"


def paper_lines(papers: Iterable[Paper]) -> list[str]:
    """Return one line per paper with its address."""
    return [f"{paper.title}: {paper.url}" for paper in papers]


def usage(name: str, *, timm: str | None, classifies: bool, labels: int) -> Section:
    """Return the examples of a card. name: for `tessella.load`; timm: the name for timm, None if it has no such model.

    classifies: show the predicted classes. labels: number of classes.
    """
    parts = []
    if classifies:
        parts.append(
            "### Image classification\n\n"
            f'```python\nimport tessella\n\nmodel = tessella.load("{name}")\n'
            f'for prediction in model.classify("{PHOTO}", top={min(labels, 5)}):\n'
            '    print(f"{100 * prediction.probability:.1f} %  {prediction.label}")\n```'
        )
    parts.append(
        "### Image embeddings\n\n"
        f'```python\nimport tessella\n\nmodel = tessella.load("{name}")\n'
        f'vectors = model.embed(["{PHOTO}"])  # float32, one row of unit length per image\n```'
    )
    if timm is not None:
        parts.append(
            "### With timm\n\nTessella has the functions of timm; write `import tessella as timm` to use them. They "
            "need PyTorch.\n\n"
            f'```python\nimport timm\nimport torch\nfrom PIL import Image\n\nmodel = timm.create_model("{timm}", '
            "pretrained=True).eval()\n"
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
            f'image = transform(Image.open("{PHOTO}").convert("RGB"))\n'
            "with torch.inference_mode():\n    probabilities = model(image[None]).softmax(dim=1)\n```"
        )
    return Section(heading="Model usage", text="\n\n".join(parts))


def citation(papers: Iterable[Paper], *, timm: bool) -> Section:
    """Return the BibTeX entries of papers, and of timm if its weights or names are used."""
    entries = [paper.bibtex() for paper in papers] + [TIMM_BIBTEX] * timm
    return Section(heading="Citation", text="\n\n".join(f"```bibtex\n{entry}\n```" for entry in entries))


def saved_facts(arch: str, config: FamilyConfig, cfg: PretrainedCfg, example_name: str = THIS_FOLDER) -> CardFacts:
    """Return the facts of a saved model.

    cfg: the `pretrained_cfg` of its config.json, with its label_names. example_name: the name of the model in
    the examples.
    """
    height, width = tuple(cfg.get("input_size", (3, 224, 224)))[1:]
    facts = estimate(config, (height, width))
    family, papers = FAMILIES[arch.partition("_")[0]]
    labels = [escape_line(label) for label in cfg.get("label_names") or ()]
    shown = ", ".join(labels[:20]) + (f" and {len(labels) - 20:,} more" if len(labels) > 20 else "")
    count = facts["num_classes"]
    details: list[tuple[str, str | Sequence[str]]] = [
        ("Model type", "image classification / feature backbone"),
        ("Architecture", f"{arch} ({family})"),
        ("Model stats", stats(facts)),
        ("Embedding", f"{facts['embedding_width']} dimensions"),
        ("Classes", f"{count:,}" + (f": {shown}" if shown else "")),
    ]
    if "input_size" in cfg:
        details.append(("Preprocessing", preprocessing(cfg)))
    details.append(("Papers", paper_lines(papers)))
    in_timm = arch not in OWN_ARCHITECTURES
    name = f"{arch}.{cfg['tag']}" if "tag" in cfg else arch
    return CardFacts(
        title=name,
        summary=f"A {family} image classification model in timm's layout, saved by Tessella.",
        license=cfg.get("license"),
        details=details,
        sections=[
            usage(
                example_name,
                timm=example_name if in_timm else None,
                classifies=count > 0,
                labels=count,
            ),
            citation(papers, timm=in_timm),
        ],
        timm=in_timm,
        classifies=count > 0,
    )
