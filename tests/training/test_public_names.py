"""The public names of `tessella.training`."""

from __future__ import annotations

import subprocess
import sys

import tessella.training


def test_public_names_can_be_imported() -> None:
    assert {"train", "TrainConfig", "PRESETS", "preset_config", "TrainingEvent"} <= set(dir(tessella.training))
    for name in dir(tessella.training):
        assert getattr(tessella.training, name) is not None


def test_importing_the_package_or_its_config_does_not_import_torch() -> None:
    code = "import sys; from tessella.training import TrainConfig, preset_config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
