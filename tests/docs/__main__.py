"""Run the blocks of pages, and print their output and what is wrong: python -m tests.docs docs/guide/search.md"""

from __future__ import annotations

import os
import sys
import tempfile
from functools import partial
from pathlib import Path

from .blocks import ROOT
from .folders import prepare
from .reader import follow


def main() -> None:
    data = ROOT.parent / "shared" / "data"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TESSELLA_CACHE"] = cache  # nothing that was tuned or calibrated here decides what is printed
        for page in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                prepare(page, Path(folder), data if data.is_dir() else None)
                for problem in follow(page, Path(folder), partial(print, flush=True)):
                    print(f"WRONG {problem}", flush=True)


if __name__ == "__main__":
    main()
