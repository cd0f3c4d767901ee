"""Take away what Windows does not have, as listed in removed.py.

Python imports this module when it starts if this folder is on PYTHONPATH. The standard library decides by the name of
the system what it uses, so modules of it that need these names are imported before they are removed.
"""

from __future__ import annotations

import asyncio  # noqa: F401
import importlib
import multiprocessing.util  # noqa: F401
import random  # noqa: F401
import selectors  # noqa: F401
import signal  # noqa: F401
import socket  # noqa: F401
import subprocess  # noqa: F401
import tempfile  # noqa: F401
import threading  # noqa: F401

importlib.import_module("removed").remove_all()  # lies beside this file
