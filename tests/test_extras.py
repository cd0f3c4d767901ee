"""A missing package is reported with the command that installs it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from tessella.errors import UsageError
from tessella.extras import install_command, require

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]


EXTRA_OF = {  # import name -> the extra that installs it
    "torch": "torch",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "ray": "ray",
    "tensorboard": "train",
}


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[><=;! ]", requirement)[0] for requirement in requirements}


def test_an_installed_module_is_returned() -> None:
    assert require("json.decoder", "a test") is sys.modules["json.decoder"]


def test_a_missing_package_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError) as caught:
        require("ray.data", "a run on a cluster")
    assert caught.value.code == "missing_dependency"
    assert "a run on a cluster needs ray, which " in caught.value.message
    assert caught.value.hint == "pip install ray"


def test_the_install_command_uses_the_name_of_the_distribution() -> None:
    assert install_command(["prometheus_client"]) == "pip install prometheus-client"


def test_every_extra_installs_its_package() -> None:
    for package, extra in EXTRA_OF.items():
        assert package in names(PROJECT["optional-dependencies"][extra])


def test_the_main_jobs_need_no_extra() -> None:
    default = names(PROJECT["dependencies"])
    assert {"pyarrow", "lancedb", "matplotlib", "openvino", "prometheus-client"} <= default
    assert not default & set(EXTRA_OF)


def test_the_extras_that_need_pytorch_install_it() -> None:
    """Conversion to ONNX and training start from PyTorch models."""
    extras = PROJECT["optional-dependencies"]
    assert names(extras["torch"]) == {"torch"}
    assert all("tessella[torch]" in extras[name] for name in ("onnx", "train"))
    assert "torch" in re.split(r"[\[\],]", extras["all"][0])
    assert "torch" in names(extras["dev"])
