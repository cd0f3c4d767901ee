"""What Windows does not have: modules, and names of `os`, `signal` and `socket`."""

from __future__ import annotations

import sys

MODULES = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "syslog")
NAMES: dict[str, tuple[str, ...]] = {
    "os": (
        *("fork", "forkpty", "sched_getaffinity", "sched_setaffinity", "getpriority", "setpriority", "PRIO_PROCESS"),
        *("geteuid", "getuid", "getgid", "chown", "fchown", "killpg", "getpgid", "setsid", "sysconf", "O_NONBLOCK"),
        *("mkfifo", "memfd_create", "posix_fadvise", "nice", "wait4", "waitid"),
    ),
    "signal": ("SIGKILL", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGHUP", "pthread_sigmask", "setitimer"),
    "socket": ("recv_fds", "send_fds", "AF_UNIX", "SCM_RIGHTS"),
}


def remove_all() -> None:
    """Remove everything from this process; modules that are blocked raise ImportError."""
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in NAMES.items():
        for name in names:
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
