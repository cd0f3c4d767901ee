"""Papers and errors of published cards: facts that were wrong or missing before they were checked."""

from __future__ import annotations

import pytest

from tessella.weights.catalogue import CATALOGUE
from tessella.weights.origins import CONVMIXER_PAPER, CROSSVIT_PAPER, GLU_PAPER, MIIL_PAPER, RESMLP_PAPER, known_errors


def test_a_paper_in_a_journal_is_cited_with_the_journal_and_its_year() -> None:
    assert CONVMIXER_PAPER.bibtex().startswith("@article{trockman2023patches,")
    assert "journal = {Transactions on Machine Learning Research}" in CONVMIXER_PAPER.bibtex()
    assert "year = {2023}" in CONVMIXER_PAPER.bibtex()
    assert RESMLP_PAPER.bibtex().startswith("@article{touvron2023resmlp,")
    assert "journal = {IEEE Transactions on Pattern Analysis and Machine Intelligence}" in RESMLP_PAPER.bibtex()


def test_the_year_of_a_paper_is_that_of_its_arxiv_number() -> None:
    for paper in (CONVMIXER_PAPER, RESMLP_PAPER, MIIL_PAPER, CROSSVIT_PAPER, GLU_PAPER):
        assert paper.year == 2000 + int(paper.arxiv[:2])


def test_a_paper_at_a_conference_and_one_on_arxiv_only() -> None:
    assert MIIL_PAPER.bibtex().startswith("@inproceedings{ridnik2021imagenet,")
    assert "Track on Datasets and Benchmarks}" in MIIL_PAPER.bibtex()
    assert "author = {Chun-Fu (Richard) Chen and Quanfu Fan and Rameswar Panda}" in CROSSVIT_PAPER.bibtex()
    assert GLU_PAPER.bibtex().startswith("@misc{shazeer2020variants,")
    assert "booktitle" not in GLU_PAPER.bibtex()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("that of the CrossViT paper", {"convmixer_768_32.in1k"}),
        (
            "google-research/vision_transformers, which does not exist",
            {"mixer_b16_224.goog_in21k_ft_in1k", "mixer_l16_224.goog_in21k_ft_in1k"},
        ),
        ("both ImageNet-22k and ImageNet-21k", {"resmlp_big_24_224.fb_in22k_ft_in1k"}),
        ("in May 2021", {"convit_tiny.fb_in1k", "convit_small.fb_in1k", "convit_base.fb_in1k"}),
    ],
)
def test_an_error_is_stated_for_the_cards_that_have_it(text: str, names: set[str]) -> None:
    assert {name for name, row in CATALOGUE.items() if any(text in error for error in known_errors(row))} == names
