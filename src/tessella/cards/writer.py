"""`card`: the model card of a published checkpoint, of a model folder, or of a repository on the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from ..checks import checked
from ..text import encode_text
from ..weights.card_text import render
from ..weights.catalogue import no_weights, resolve
from ..weights.names import local_folder
from .published import published_facts
from .trained import config_facts, folder_facts


@checked
def card(model: str | Path) -> str:
    """Return a model card that the Hub accepts: metadata in YAML, then Markdown.

    model: a name of the catalog, the folder of a saved or trained model, with or without `local-dir:`, or
    `hf-hub:ORG/REPO`. The card of a folder includes how it was trained, measured and calibrated, as far as its files
    say. Published figures are marked as such. Raises UsageError `unknown_model`, `unknown_tag`, `no_weights` for
    an architecture without checkpoints, `bad_argument`, and the errors of a config that cannot be read.
    """
    if isinstance(model, Path) or (os.path.isdir(model) and not model.startswith("local-dir:")):  # noqa: PTH112
        model = f"local-dir:{model}"
    if model.startswith("local-dir:"):
        facts = folder_facts(local_folder(model))
    elif model.startswith(("hf-hub:", "hf_hub:")):
        facts = config_facts(model)
    else:
        arch, checkpoint = resolve(model)
        if checkpoint is None:
            raise no_weights(arch)
        facts = published_facts(checkpoint)
    return encode_text(render(facts)).decode()
