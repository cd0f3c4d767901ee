"""Where models come from: families, papers, repositories, training data and licenses, as far as they are published.

Torch is not imported. What is known to be wrong on the page of a checkpoint on the Hub is in `_HUB_ERRORS`.
"""

# Checked in November 2026 against stored copies of these pages:
# - Titles, authors in order, arXiv numbers: BibTeX entries in the authors' repositories (ConViT, MLP-Mixer, ResMLP,
#   CrossViT, MIIL, DINO) and copies of the abstract pages (ConvMixer, GLU, gMLP). Middle initials and "(Richard)" are
#   those of the published versions.
# - Venues: proceedings.neurips.cc (MLP-Mixer, gMLP), openaccess.thecvf.com (CrossViT), research.facebook.com (ConViT),
#   the TMLR digest of March 19, 2023 (ConvMixer), PubMed 36094972 (ResMLP), OpenAlex (DINO). The authors' page says
#   NeurIPS 2021 for the MIIL paper; its track is from a citation by others. The GLU paper is on arXiv only.
# - Licenses of code: LICENSE files of ConvMixer, ConViT, vision_transformer and timm; the README of DeiT; the SPDX
#   line in CrossViT's source, although its first README said CC-BY-NC. Not found: a LICENSE file of CrossViT, and any
#   license of ImageNet21K, which is therefore empty here.
# - Licenses of weights (in the catalog, from timm): 17 of the 43 cards on the Hub were at hand, and they agree.
# - `_HUB_ERRORS`: the cards themselves. The citations on the other two ConvMixer cards could not be checked.

from __future__ import annotations

import re
from dataclasses import dataclass

from .catalogue import DEPRECATED, OWN_ARCHITECTURES, REMAPPED, Checkpoint


@dataclass(frozen=True)
class Paper:
    """A paper that describes a model family or a training method.

    year: of the first version on arXiv. venue: a conference, or a journal if is_journal; "" if the paper was published
    on arXiv only. venue_year: 0 if it is the year of the first version.
    """

    title: str
    year: int
    arxiv: str  # identifier
    authors: tuple[str, ...]
    venue: str = ""
    venue_year: int = 0
    is_journal: bool = False

    @property
    def url(self) -> str:
        """The address of the abstract."""
        return f"https://arxiv.org/abs/{self.arxiv}"

    def bibtex(self) -> str:
        """Return a BibTeX entry, with the year of the venue."""
        word = next(word for word in re.findall(r"[a-z]+", self.title.lower()) if len(word) > 3)
        surname = re.sub("[^a-z]", "", self.authors[0].rpartition(" ")[2].lower())
        kind, place = ("article", "journal") if self.is_journal else ("inproceedings", "booktitle")
        year = self.venue_year or self.year
        fields = [
            f"title = {{{self.title}}}",
            f"author = {{{' and '.join(self.authors)}}}",
            *([f"{place} = {{{self.venue}}}"] if self.venue else []),
            f"year = {{{year}}}",
            f"eprint = {{{self.arxiv}}}",
            "archivePrefix = {arXiv}",
        ]
        return f"@{kind if self.venue else 'misc'}{{{surname}{year}{word},\n  " + ",\n  ".join(fields) + "\n}"


@dataclass(frozen=True)
class Repository:
    """A repository in which weights were published by the people who trained them.

    code_license: an SPDX identifier, "" if it is not known here.
    """

    url: str
    code_license: str = ""


@dataclass(frozen=True)
class Origin:
    """Where the weights of a checkpoint come from.

    trained: half a sentence about training, "trained on ImageNet-1k by the authors of the paper". data: names of
    the data sets on the Hub. methods: papers about the training, besides those of the family. source: None for models
    of this project and for architectures without weights.
    """

    trained: str
    data: tuple[str, ...] = ()
    methods: tuple[Paper, ...] = ()
    source: Repository | None = None


CONVMIXER_PAPER = Paper(
    "Patches Are All You Need?",
    2022,
    "2201.09792",
    ("Asher Trockman", "J. Zico Kolter"),
    "Transactions on Machine Learning Research",
    venue_year=2023,
    is_journal=True,
)
CONVIT_PAPER = Paper(
    "ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases",
    2021,
    "2103.10697",
    (
        *("Stéphane d'Ascoli", "Hugo Touvron", "Matthew L. Leavitt"),
        *("Ari S. Morcos", "Giulio Biroli", "Levent Sagun"),
    ),
    "International Conference on Machine Learning",
)
MIXER_PAPER = Paper(
    "MLP-Mixer: An all-MLP Architecture for Vision",
    2021,
    "2105.01601",
    (
        *("Ilya Tolstikhin", "Neil Houlsby", "Alexander Kolesnikov", "Lucas Beyer", "Xiaohua Zhai"),
        *("Thomas Unterthiner", "Jessica Yung", "Andreas Steiner", "Daniel Keysers", "Jakob Uszkoreit"),
        *("Mario Lucic", "Alexey Dosovitskiy"),
    ),
    "Advances in Neural Information Processing Systems",
)
GLU_PAPER = Paper("GLU Variants Improve Transformer", 2020, "2002.05202", ("Noam Shazeer",))
RESMLP_PAPER = Paper(
    "ResMLP: Feedforward networks for image classification with data-efficient training",
    2021,
    "2105.03404",
    (
        *("Hugo Touvron", "Piotr Bojanowski", "Mathilde Caron", "Matthieu Cord", "Alaaeldin El-Nouby"),
        *("Edouard Grave", "Gautier Izacard", "Armand Joulin", "Gabriel Synnaeve", "Jakob Verbeek", "Hervé Jégou"),
    ),
    "IEEE Transactions on Pattern Analysis and Machine Intelligence",
    venue_year=2023,
    is_journal=True,
)
GMLP_PAPER = Paper(
    "Pay Attention to MLPs",
    2021,
    "2105.08050",
    ("Hanxiao Liu", "Zihang Dai", "David R. So", "Quoc V. Le"),
    "Advances in Neural Information Processing Systems",
)
CROSSVIT_PAPER = Paper(
    "CrossViT: Cross-Attention Multi-Scale Vision Transformer for Image Classification",
    2021,
    "2103.14899",
    ("Chun-Fu (Richard) Chen", "Quanfu Fan", "Rameswar Panda"),
    "IEEE/CVF International Conference on Computer Vision",
)
MIIL_PAPER = Paper(
    "ImageNet-21K Pretraining for the Masses",
    2021,
    "2104.10972",
    ("Tal Ridnik", "Emanuel Ben-Baruch", "Asaf Noy", "Lihi Zelnik-Manor"),
    "Proceedings of the Neural Information Processing Systems Track on Datasets and Benchmarks",
)
DINO_PAPER = Paper(
    "Emerging Properties in Self-Supervised Vision Transformers",
    2021,
    "2104.14294",
    (
        *("Mathilde Caron", "Hugo Touvron", "Ishan Misra", "Hervé Jégou"),
        *("Julien Mairal", "Piotr Bojanowski", "Armand Joulin"),
    ),
    "IEEE/CVF International Conference on Computer Vision",
)
TIMM_BIBTEX = """@misc{wightman2019timm,
  title = {PyTorch Image Models},
  author = {Ross Wightman},
  year = {2019},
  doi = {10.5281/zenodo.4414861},
  howpublished = {https://github.com/huggingface/pytorch-image-models}
}"""

FAMILIES: dict[str, tuple[str, tuple[Paper, ...]]] = {  # by the first word of an architecture
    "convmixer": ("ConvMixer", (CONVMIXER_PAPER,)),
    "convit": ("ConViT", (CONVIT_PAPER,)),
    "mixer": ("MLP-Mixer", (MIXER_PAPER,)),
    # has no paper of its own: the model of the first paper with the gates of the second
    "gmixer": ("gMixer", (MIXER_PAPER, GLU_PAPER)),
    "resmlp": ("ResMLP", (RESMLP_PAPER,)),
    "gmlp": ("gMLP", (GMLP_PAPER,)),
    "crossvit": ("CrossViT", (CROSSVIT_PAPER,)),
}

TIMM = Repository("https://github.com/huggingface/pytorch-image-models", "Apache-2.0")
_MIIL = Repository("https://github.com/Alibaba-MIIL/ImageNet21K")
_SOURCES = {  # of the weights by the authors of a family's paper
    "convmixer": Repository("https://github.com/locuslab/convmixer", "MIT"),
    "convit": Repository("https://github.com/facebookresearch/convit", "Apache-2.0"),
    "mixer": Repository("https://github.com/google-research/vision_transformer", "Apache-2.0"),
    "resmlp": Repository("https://github.com/facebookresearch/deit", "Apache-2.0"),
    "crossvit": Repository("https://github.com/IBM/CrossViT", "Apache-2.0"),
}
_AUTHORS = "by the authors of the paper"
_TRAINED: dict[str, tuple[str, tuple[str, ...], tuple[Paper, ...]]] = {  # by tag
    "in1k": (f"trained on ImageNet-1k {_AUTHORS}", ("imagenet-1k",), ()),
    "fb_in1k": (f"trained on ImageNet-1k {_AUTHORS}", ("imagenet-1k",), ()),
    "fb_distilled_in1k": (f"trained on ImageNet-1k with a teacher {_AUTHORS}", ("imagenet-1k",), ()),
    "fb_in22k_ft_in1k": (
        f"pretrained on ImageNet-22k and fine-tuned on ImageNet-1k {_AUTHORS}",
        ("imagenet-22k", "imagenet-1k"),
        (),
    ),
    "fb_dino": (
        f"trained on the images of ImageNet-1k without labels, by self-distillation (DINO), {_AUTHORS}",
        ("imagenet-1k",),
        (DINO_PAPER,),
    ),
    "ra3_in1k": ("trained on ImageNet-1k by the author of timm", ("imagenet-1k",), ()),
    "goog_in21k": (f"trained on ImageNet-21k {_AUTHORS}", ("imagenet-21k",), ()),
    "goog_in21k_ft_in1k": (f"trained on ImageNet-1k alone, despite its tag, {_AUTHORS}", ("imagenet-1k",), ()),
    "miil_in21k": ("trained on ImageNet-21K-P by Alibaba MIIL", ("imagenet-21k-p",), (MIIL_PAPER,)),
    "miil_in21k_ft_in1k": (
        "pretrained on ImageNet-21K-P and fine-tuned on ImageNet-1k by Alibaba MIIL",
        ("imagenet-21k-p", "imagenet-1k"),
        (MIIL_PAPER,),
    ),
    "cifar10": ("trained on a JPEG copy of CIFAR-10 by the Tessella project", ("cifar10",), ()),
    "photographs": (
        "distilled by the Tessella project on photographs, from a MobileNetV2 and from its own model for CIFAR-10",
        ("cifar10",),
        (),
    ),
}
_WRONG_LINK = (
    "Its published card links to google-research/vision_transformers, which does not exist; the repository is "
    "google-research/vision_transformer."
)
_HUB_ERRORS = {  # by the first word of an architecture, or by name: what a page on the Hub gets wrong
    "convmixer": (
        "The GMACs and activations on its published card leave out the depthwise convolutions; those above count them.",
    ),
    "convmixer_768_32.in1k": ("The citation on its published card is that of the CrossViT paper.",),
    "mixer_b16_224.goog_in21k_ft_in1k": (_WRONG_LINK,),
    "mixer_l16_224.goog_in21k_ft_in1k": (_WRONG_LINK,),
    "resmlp_big_24_224.fb_in22k_ft_in1k": (
        "Its published card names both ImageNet-22k and ImageNet-21k as the data of the pretraining; the authors name "
        "ImageNet-22k.",
    ),
}
_LIMITS = {  # by the first word of an architecture, or by architecture
    "crossvit": "timm resizes an image of any other size without a warning; Tessella refuses it.",
    "convmixer_768_32": "Unlike the other ConvMixers it has ReLU instead of GELU.",
    "gmixer": "The architecture has no paper of its own, and its training recipe is not published with the weights.",
    "gmlp": "The weights are a training of timm's author, not of the authors of the paper.",
}


def origin_of(checkpoint: Checkpoint) -> Origin:
    """Return where the weights of a checkpoint of the catalog come from."""
    trained, data, methods = _TRAINED.get(checkpoint.tag, ("no weights are published", (), ()))
    return Origin(trained, data, methods, _source_of(checkpoint))


def _source_of(checkpoint: Checkpoint) -> Repository | None:
    if not checkpoint.hf_hub_id:
        return None
    if checkpoint.tag.startswith("miil"):
        return _MIIL
    return _SOURCES.get(checkpoint.architecture.partition("_")[0], TIMM)


def known_errors(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return what is known to be wrong or surprising about a published checkpoint, as sentences."""
    arch, name = checkpoint.architecture, checkpoint.name
    word = arch.partition("_")[0]
    lines = [sentence(text) for text in (checkpoint.note, checkpoint.class_warning) if text]
    if checkpoint.hf_hub_id:
        lines += [*_HUB_ERRORS.get(word, ()), *_HUB_ERRORS.get(name, ())]
    if arch not in OWN_ARCHITECTURES and checkpoint.has_weights:
        lines += [_LIMITS[key] for key in (word, arch) if key in _LIMITS]
    lines += [
        f"timm loads {REMAPPED[old]} for {old}, which is the former name of these weights."
        for old, new in DEPRECATED.items()
        if new == name and old in REMAPPED
    ]
    return tuple(lines)


def sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop; model names keep their case."""
    first = text.partition(" ")[0]
    capital = text if "_" in first or first in ("timm", "tessella") else text[:1].upper() + text[1:]
    return capital if capital.endswith((".", "!", "?")) else f"{capital}."
