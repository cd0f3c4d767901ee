"""Arguments for unpacking archives, which Python before 3.11.4 does not have."""

from __future__ import annotations

import tarfile
from typing import Any

EXTRACTION: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
