"""Fine-tune the built-in model for photographs on your classes, evaluate it and calibrate it.

    python examples/fine_tune.py clothing run

The first folder has one subfolder of images per class. The second one becomes a model folder, which
`tessella classify -m local-dir:run IMAGE` and `tessella.load("local-dir:run")` read; the report is in run/report.
If the program is interrupted, run it again: it resumes. Needs PyTorch, the extra `torch`.
"""

import argparse

from tessella.evaluation import evaluate
from tessella.training import DataSettings, EpochEvent, TrainingRemark, preset_config, train


def report_progress(event):
    """Print the accuracy after each epoch, and remarks, such as how the model was calibrated."""
    if isinstance(event, EpochEvent):
        print(f"epoch {event.epoch}: {event.score} on {event.val_images} held-out images")
    elif isinstance(event, TrainingRemark):
        print(event.text)


def main():
    """Train, evaluate on the images that were held out, and classify one of them."""
    parser = argparse.ArgumentParser(description="Fine-tune a model on a folder with one subfolder per class.")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--model", help="a name of `tessella list`; default: the built-in model for photographs")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    # A calibration needs at least 40 held-out images. Of the 72 in clothing/ these are more than half; with thousands
    # of images, 0.1 is enough.
    parser.add_argument("--val-fraction", type=float, default=0.6)
    arguments = parser.parse_args()

    changes = {"epochs": arguments.epochs, "batch_size": arguments.batch_size}
    if arguments.model:
        changes["model"] = arguments.model
    config = preset_config("finetune", **changes)
    data = DataSettings(data=arguments.data, val_fraction=arguments.val_fraction)
    folder = train(data, arguments.out, config, workers=0, on_event=report_progress)

    (result,) = evaluate(arguments.data, [f"local-dir:{folder}"])  # only images that it was not trained on
    print(f"accuracy {100 * result.metrics.top1:.1f} % on {result.metrics.count} held-out images")
    if result.trust is not None:
        print(f"prediction sets: {100 * result.trust.coverage:.1f} % contain the right class")
        print(f"prediction sets: {result.trust.set_size:.2f} classes on average")


if __name__ == "__main__":
    main()
