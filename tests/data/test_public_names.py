"""The public names of `tessella.data`: they load on first use, and the stub lists them for type checkers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tessella.data
from tessella.data.names import Skipped


def test_importing_is_cheap() -> None:
    code = "import tessella.data, tessella.data.labels, sys; assert not {'torch', 'PIL', 'numpy'} & set(sys.modules)"
    light = "import tessella.data.sources, tessella.data.decode, sys; assert 'torch' not in sys.modules"
    for program in (code, light):
        subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_can_be_imported() -> None:
    public = vars(tessella.data)["__all__"]
    assert {"Source", "iter_sources", "open_labelled", "create_dataset", "IMAGENET_DEFAULT_MEAN"} <= set(public)
    for name in public:
        assert getattr(tessella.data, name) is not None
        assert name in dir(tessella.data)
    assert tessella.data.Skipped is Skipped


def test_a_star_import_binds_the_public_names() -> None:
    names: dict[str, object] = {}
    exec("from tessella.data import *", names)
    assert set(vars(tessella.data)["__all__"]) <= set(names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    unknown = "no_such_name"
    with pytest.raises(AttributeError):
        getattr(tessella.data, unknown)
