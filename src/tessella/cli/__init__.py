"""The command line."""

from __future__ import annotations

import sys

from ..signals import interrupt_on_sigterm, raise_interrupt_behind


def main() -> None:
    """Entry point of `tessella`. SIGTERM is an interrupt; one that comes during the imports ends it as any other."""
    try:
        interrupt_on_sigterm()
        from .program import main as run

        try:
            run()
        except Exception as error:
            raise_interrupt_behind(error)
            raise
    except KeyboardInterrupt:
        if sys.stderr is not None:
            print("interrupted", file=sys.stderr)
        sys.exit(130)
