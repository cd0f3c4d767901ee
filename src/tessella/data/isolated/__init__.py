"""Read and decode images in separate processes: an image that crashes or hangs its process affects no other image.

A thread of the caller, the supervisor, hands out tasks and collects results. It owns one fork server, a fresh Python
process that imports once what decoding needs and touches no image. The workers are forks of it, so a lost one is
replaced in milliseconds. A worker receives pickled sources on a socket, answers one line of JSON for each, in order,
and writes the pixels to an in-memory file. It is always working on the first image that it has not answered: that image
is to blame if the process dies or hangs, and the images behind it go to other workers.

subprocess is used instead of multiprocessing: "spawn" and "forkserver" import the caller's __main__ again in each
worker, and "fork" is not safe beside threads. Answers are JSON because the output of a process that a hostile image may
control must not be unpickled.
"""

from __future__ import annotations

from .decoder import IsolatedDecoder
from .protocol import Decoded

__all__ = ["Decoded", "IsolatedDecoder"]
