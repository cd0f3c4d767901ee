"""Take away what Windows does not have: modules, and functions of `os`, `signal` and `socket`.

Python imports this module when it starts if this folder is on PYTHONPATH. The standard library decides by the name of
the system what it uses, so modules of it that need these functions are imported before they are removed. Importing a
module that is blocked raises ImportError.
"""

from __future__ import annotations

import asyncio  # noqa: F401
import multiprocessing.util  # noqa: F401
import os
import random  # noqa: F401
import selectors  # noqa: F401
import signal
import socket
import subprocess  # noqa: F401
import sys
import tempfile  # noqa: F401
import threading  # noqa: F401
from types import ModuleType

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")
REMOVED: dict[ModuleType, tuple[str, ...]] = {
    os: (
        *("fork", "forkpty", "sched_getaffinity", "sched_setaffinity", "getpriority", "setpriority", "PRIO_PROCESS"),
        *("geteuid", "getuid", "getgid", "chown", "fchown", "killpg", "getpgid", "setsid", "sysconf", "O_NONBLOCK"),
        *("mkfifo", "memfd_create", "posix_fadvise", "nice", "wait4", "waitid"),
    ),
    signal: ("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGHUP", "pthread_sigmask", "setitimer"),
    socket: ("recv_fds", "send_fds", "AF_UNIX", "SCM_RIGHTS"),
}

for name in MODULES:
    sys.modules[name] = None  # type: ignore[assignment]
for module, names in REMOVED.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
