"""Find exact and near duplicates in a folder of images, and write a list of them.

    python examples/find_duplicates.py photos duplicates.csv

The list has one row per image that has a duplicate. Rows with the same `cluster` show the same image; `kind` is "kept"
for the best of them, "same" for a copy of its bytes, and "near" for an image that looks almost the same, such as one
that was resized or saved again. No image is deleted. Decoding uses forked processes, so this needs Linux or macOS.
"""

import argparse
import tempfile

import tessella
from tessella.bulk import RunSettings, run
from tessella.search import dedup, write_duplicates


def find(folder):
    """Embed all images of a folder and compare them."""
    # For a large collection, use a folder of your own instead: a run that is interrupted resumes there.
    with tempfile.TemporaryDirectory() as results:
        settings = RunSettings(top=0)  # embeddings without classes
        summary = run([folder], results, tessella.load, settings)
        for code, count in summary.errors.items():
            print(f"{count} not compared: {code}")
        return dedup(results)  # the threshold was measured for the built-in model


def main():
    """Print the clusters and write the list."""
    parser = argparse.ArgumentParser(description="Find exact and near duplicates in a folder of images.")
    parser.add_argument("folder")
    parser.add_argument("list", help="the file to write: .csv, .json, .jsonl or .parquet")
    arguments = parser.parse_args()

    duplicates = find(arguments.folder)
    for row in duplicates.rows:
        if row.kind == "kept":
            print(f"{row.key}, {row.width}x{row.height}")
        else:
            print(f"  {row.kind} {row.similarity:.3f}  {row.key}, {row.width}x{row.height}")
    write_duplicates(arguments.list, duplicates)
    spare = len(duplicates.rows) - duplicates.clusters
    print(f"{spare} of {duplicates.images} images are duplicates of another one; the list is {arguments.list}")


if __name__ == "__main__":
    main()
