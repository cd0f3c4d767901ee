"""The packages list their public names, and importing them loads neither torch nor the modules behind the names."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PUBLIC = {
    "tessella.evaluation": ("EvaluationSettings", "ProbeSettings", "evaluate", "probe", "write_report"),
    "tessella.performance": ("BenchmarkSettings", "bench", "tune"),
    "tessella.plots": ("contact_sheet", "write_sheet"),
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_loaded_on_first_use(package: str) -> None:
    module = importlib.import_module(package)
    assert set(PUBLIC[package]) <= set(dir(module))
    for name in PUBLIC[package]:
        assert callable(getattr(module, name))


@pytest.mark.parametrize("package", PUBLIC)
def test_importing_a_package_is_cheap(package: str) -> None:
    code = f"import sys, {package}; assert not {{'torch', 'matplotlib'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
