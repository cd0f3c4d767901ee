"""What the trials of `scripts/soak` share: the file with their figures."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import torch


def write_figures(path: Path | None, what: str, facts: dict[str, Any], **conditions: Any) -> None:
    """The facts beside the conditions that they were found under; None writes nothing."""
    if path:
        here = dict(torch=torch.__version__, python=platform.python_version(), cores=len(os.sched_getaffinity(0)))
        path.write_text(json.dumps(dict(conditions=dict(what=what, **conditions, **here), **facts), indent=1) + "\n")
