"""Upload a model to the Hub: weights, config, card, and its calibration if it belongs to exactly these weights."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path

from .calibration.calibration import Calibration
from .calibration.finding import beside
from .calibration.storage import read_calibration, write_calibration
from .cards.trained import read_report, uploaded_facts
from .checks import checked
from .errors import UsageError
from .fingerprint import hash_identity, identify
from .loading import spec_of
from .models.base import ImageModel
from .predictor import Predictor
from .storage import write_bytes
from .text import encode_text, without_folders
from .weights.card_text import render
from .weights.open import open_network
from .weights.save import CARD, save_pretrained
from .weights.upload import check_upload, upload_folder

_log = logging.getLogger(__name__)


@checked
def push_to_hub(
    model: ImageModel | Predictor,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = "Add model",
    create_pr: bool = False,
    config_overrides: Mapping[str, object] | None = None,
    calibration: str | Path | Calibration | None = "auto",
    endpoint: str | None = None,
) -> str:
    """Upload the model to the Hub repository `repo_id` and return the address of the commit.

    The arguments have the names of huggingface_hub. token, endpoint: None uses its settings. The repository, and
    revision (a branch), are created if they do not exist. private: for a new repository (None: the organization's
    default). create_pr: open a pull request instead of committing. config_overrides: as in `save_pretrained`.
    calibration: "auto" is that of a Predictor, or the one beside the weights that `create_model` loaded, and is left
    out with a warning if it does not belong to exactly the uploaded model in float32; a file or a Calibration; None
    uploads none. `tessella.load("hf-hub:...")` uses it. The calibration and the card name the images that
    were measured, without the folders of this machine. The card has the figures of the report that `tessella train`
    wrote, if the model has not changed since. The report itself, which shows images and their names, is not uploaded.

    Raises the errors of `save_pretrained`, HubError, UsageError `other_calibration` for a given calibration of another
    model, and WeightsError `bad_format` for a damaged one.
    """
    location = check_upload(repo_id, revision, token, endpoint)
    chosen = _choose(model, calibration)
    net = model.model if isinstance(model, Predictor) else model
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(net, temporary, config_overrides=config_overrides)
        if chosen is not None and _belongs(chosen, folder, repo_id, is_given=calibration != "auto"):
            write_calibration(beside(folder), _without_folders(chosen))
        shown = f"hf-hub:{repo_id}" + (f"@{revision}" if revision is not None else "")
        facts = uploaded_facts(folder, repo_id, shown, _report_of(net, folder))
        write_bytes(folder / CARD, encode_text(render(facts)))
        return upload_folder(
            folder,
            location,
            revision=revision,
            private=private,
            commit_message=commit_message,
            create_pr=create_pr,
        )


def _choose(model: ImageModel | Predictor, wanted: str | Path | Calibration | None) -> Calibration | None:
    """Return the calibration for the argument of `push_to_hub`, which may belong to another model."""
    if wanted is None or isinstance(wanted, Calibration):
        return wanted
    if wanted != "auto":
        return read_calibration(wanted)
    if isinstance(model, Predictor):
        return model.calibration
    path = beside(model.source) if model.source is not None else None
    return read_calibration(path) if path is not None and path.is_file() else None


def _without_folders(calibration: Calibration) -> Calibration:
    """Return a calibration whose texts have no folders of this machine; its numbers stay as they are."""
    return dataclasses.replace(
        calibration,
        model=without_folders(calibration.model),
        data=calibration.data._replace(origin=without_folders(calibration.data.origin)),
    )


def _report_of(model: ImageModel, folder: Path) -> Mapping[str, object]:
    """Return the report in the folder that a model was loaded from; empty unless it is of the model in `folder`."""
    report = read_report(model.source) if model.source is not None else {}
    conditions = report.get("conditions")
    if not isinstance(conditions, dict):
        return {}
    settings = {"transform": "transform", "policy": "decode policy", "precision": "precision"}
    values = {name: str(conditions.get(key)) for name, key in settings.items()}
    network = open_network(f"local-dir:{folder}")
    fingerprint = hash_identity(identify(network, spec_of(network)), **values)
    return report if fingerprint == conditions.get("fingerprint") else {}


def _belongs(calibration: Calibration, folder: Path, repo: str, *, is_given: bool) -> bool:
    """Return whether a calibration is of the model in a folder, as it is loaded in float32.

    is_given: raise UsageError `other_calibration` if it is not, instead of a warning.
    """
    network = open_network(f"local-dir:{folder}")
    settings = dict(transform=calibration.transform, policy=calibration.policy, precision="float32")
    fingerprint = hash_identity(identify(network, spec_of(network)), **settings)
    try:
        name = f"the model for {repo} in float32"
        calibration.check_model(fingerprint, name, network.num_classes, network.width)
    except UsageError as error:
        if is_given:
            raise
        hint = "run `tessella calibrate` with the model that is uploaded, or pass calibration=None"
        _log.warning("no calibration is uploaded to %s: %s; %s", repo, error.message, hint)
        return False
    return True
