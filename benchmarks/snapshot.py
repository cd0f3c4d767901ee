"""Write the newest checkpoint of a training run that has not ended as a model folder: `python benchmarks/snapshot.py`.

The run is only read, so it may be going on. The folder is used as `local-dir:FOLDER`; classes have numbers as names,
unless they are those of a published set with as many classes. `scripts/bench photographs --models run:RUN` does the
same, so that a model can be judged while it is trained.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tessella import save_pretrained
from tessella.models.base import ImageModel
from tessella.training import checkpoint
from tessella.training.model import build_model
from tessella.training.run_folder import TrainingRecord


def write_snapshot(run: Path, folder: Path) -> Path:
    """Write the averaged weights of the newest checkpoint, or the weights if there are no averaged ones."""
    saved = checkpoint.read_newest(run, print)
    if saved is None:
        raise SystemExit(f"{run} has no checkpoint yet")
    weights = saved.tensors.get("ema", saved.tensors["model"])
    config = dataclasses.replace(TrainingRecord.read(run).config, init_from="scratch")
    count = class_count(build_model(config, ("a", "b"))[0], weights)
    model, spec = build_model(config, tuple(map(str, range(count))))
    model.load_state_dict(weights)
    model.pretrained_cfg |= spec.to_cfg() | dict(num_classes=count)
    for name in ("tag", "label_names", "label_descriptions"):  # of the weights that training started from
        model.pretrained_cfg.pop(name, None)
    return save_pretrained(model.eval(), folder)


def class_count(model: ImageModel, weights: Mapping[str, Tensor]) -> int:
    """Return the number of classes of weights for a model with any number of classes."""
    classifier = next(name for name, module in model.named_modules() if module is model.get_classifier())
    return next(x.shape[0] for name, x in weights.items() if name.startswith(f"{classifier}.") and x.ndim == 2)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of `tessella train`")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder of the model")
    args = parser.parse_args()
    print(f"local-dir:{write_snapshot(args.run, args.folder)}")


if __name__ == "__main__":
    main()
