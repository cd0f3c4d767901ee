"""Classify images, and tell the answers that can be trusted from those that cannot.

    python examples/classify.py examples/cat.jpg examples/coffee.jpg
    python examples/classify.py --model local-dir:run photos     # your own model, a folder of images

An input is an image, a folder, a glob, an archive, a Parquet file or a URL. The default model knows the ten classes of
CIFAR-10. It is calibrated: it says which classes contain the right one for 90 % of images, and whether an image
probably shows none of them.
"""

import argparse

import tessella


def describe(record):
    """Return one line about an image: its class, what else it could be, or why there is no answer."""
    if record.status != "ok":
        return f"not classified: {record.status} ({record.message})"
    best = record.top[0]
    answer = f"{best.label}, {100 * best.probability:.1f} %"
    if record.assessment is None:
        return f"{answer} (this model is not calibrated; see `tessella calibrate`)"
    if record.assessment.unknown:
        return f"unknown; the most similar class is {answer}"
    others = [one.label for one in record.assessment.prediction_set if one != best]
    return f"{answer}, or {' or '.join(others)}" if others else answer


def main():
    """Print one line per image, in the order of the inputs."""
    parser = argparse.ArgumentParser(description="Classify images with a calibrated model.")
    parser.add_argument("inputs", nargs="+", help="images, folders, globs, archives, Parquet files or URLs")
    parser.add_argument("--model", default="convmixer_256_8_ks3_p4.cifar10", help="a name of `tessella list`")
    arguments = parser.parse_args()

    model = tessella.load(arguments.model)
    for name in arguments.inputs:
        for record in model.records(name, top=3, embed=False):  # a bad image is a record, too, and stops nothing
            print(f"{record.key}: {describe(record)}")


if __name__ == "__main__":
    main()
