"""OpenVINO is imported without its converter and without reports over the network, and otherwise unchanged."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_import_loads_neither_the_converter_nor_the_reports() -> None:
    code = (
        "import sys; from tessella.engine.runtime import op, ov\n"
        "print([name for name in sys.modules if 'telemetry' in name or name.startswith('openvino.tools.ovc')])\n"
        "print(ov.Core().available_devices[0], op.relu.__name__)"
    )
    assert run(code).splitlines() == ["[]", "CPU relu"]


def test_the_converter_is_loaded_on_first_use() -> None:
    """Also for other parts of a program that uses openvino."""
    code = (
        "from tessella.engine.runtime import ov, report_nothing; import openvino, sys\n"
        "assert openvino is ov\n"
        "report_nothing()\n"
        "print(openvino.convert_model.__module__, hasattr(openvino, 'no_such_name'))\n"
        "from openvino import convert_model\n"
        "print('openvino_telemetry.main' in sys.modules)"
    )
    assert run(code).split() == ["openvino.tools.ovc.convert", "False", "False"]


def test_an_openvino_that_is_already_imported_is_not_changed() -> None:
    code = (
        "import sys; sys.modules['openvino_telemetry'] = None\n"  # the test reports nothing either
        "import openvino; before = dict(vars(openvino)); from tessella.engine.runtime import ov\n"
        "print(ov is openvino, before.keys() == vars(openvino).keys(), 'convert_model' in before)"
    )
    assert run(code).split() == ["True", "True", "True"]


@pytest.mark.quiet
def test_the_import_takes_under_two_tenths_of_a_second() -> None:
    code = (
        "import numpy, time; start = time.perf_counter(); from tessella.engine import runtime\n"
        "print(time.perf_counter() - start)"
    )
    assert min(float(run(code)) for _ in range(3)) < 0.2
