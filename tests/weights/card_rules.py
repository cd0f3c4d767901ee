"""What the Hub demands of the metadata of a model card, for the hub on loopback.

From the documentation of the Hub (model cards; model-card metadata; the list of licenses) and the messages of its
`/api/validate-yaml`: unknown licenses and tasks, names of data sets that are none, and a wrong model-index are errors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

LICENSES = (
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m"),
    *("bigscience-bloom-rail-1.0", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause"),
    *("bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0"),
    *("cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("cdla-sharing-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0"),
    *("etalab-2.0", "eupl-1.1", "eupl-1.2", "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1"),
    *("lgpl-3.0", "isc", "lppl-1.3c", "ms-pl", "mpl-2.0", "odc-by", "odbl", "openrail++", "osl-3.0", "postgresql"),
    *("ofl-1.1", "ncsa", "unlicense", "zlib", "pddl", "unknown", "other"),
)
TASKS = ("image-classification", "image-feature-extraction")


def problems(content: str) -> list[str]:
    """Return why the Hub would refuse a card."""
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if not found:
        return ["no metadata"]
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    return list(_problems(data)) if isinstance(data, dict) else ["the metadata is no mapping"]


def _problems(data: dict[str, Any]) -> Iterator[str]:
    if "license" in data and data["license"] not in LICENSES:
        yield f'"license" must be one of {", ".join(LICENSES)}'
    if data.get("license") == "other" and not re.fullmatch(r"[a-z0-9-.]+", data.get("license_name") or ""):
        yield '"license_name" is missing, or no lower-case name'
    if data.get("pipeline_tag") not in TASKS:
        yield '"pipeline_tag" is unknown'
    for key in ("tags", "datasets"):
        values = data.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            yield f'"{key}" must be a list of names'
        elif key == "datasets" and not all(re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", value) for value in values):
            yield '"datasets" has a name that is none'
    for model in data.get("model-index", []):
        if not isinstance(model.get("name"), str) or not model["name"]:
            yield '"model-index[0].name" is required'
        for result in model.get("results", []):
            yield from _problems_of_result(result)


def _problems_of_result(result: dict[str, Any]) -> Iterator[str]:
    for part, keys in (("task", ("type",)), ("dataset", ("type", "name"))):
        if not all(isinstance(result.get(part, {}).get(key), str) for key in keys):
            yield f'"model-index[0].results.{part}" needs {keys}'
    metrics = result.get("metrics") or [{}]
    if not all(isinstance(row.get("type"), str) and isinstance(row.get("value"), int | float) for row in metrics):
        yield '"model-index[0].results.metrics" needs type and value'
    if "source" in result and not str(result["source"].get("url", "")).startswith("https://"):
        yield '"model-index[0].results.source.url" is required'
