"""The service behind all routes: admission, decoding, batches, answers; readiness and drain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..bulk.run_folder import model_of
from ..data.decode import Pixels
from ..errors import ImageError, ServeError, UsageError
from ..pipeline import ImageReader
from ..predictor import load
from ..results import Output
from ..weights.catalogue import Task, default_model
from .metrics import Metrics
from .models import ModelStatus as ModelStatus
from .models import ServedModel as ServedModel
from .models import full_name, public_name
from .settings import ServeSettings


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    outcomes: one per image, in order. sizes: width and height of each decoded image; (0, 0) if it was not decoded.
    timing: milliseconds by stage: "decode", "queue", "model", "total".
    """

    model: ServedModel
    outcomes: list[Output | ImageError]
    sizes: list[tuple[int, int]]
    timing: dict[str, float]


@dataclass(frozen=True)
class Readiness:
    """Whether the service answers requests, and why not."""

    ready: bool
    reason: str = ""


class Service:
    """Answer requests for classification and embeddings. All methods are called in one event loop.

    failed: set when the service cannot recover by itself, so that its process should end with an error.
    """

    def __init__(self, settings: ServeSettings, *, clock: Callable[[], float] = time.monotonic):
        self.settings, self.metrics, self._clock = settings, Metrics(), clock
        self.failed = asyncio.Event()
        self._readiness = Readiness(False, "the first model is being loaded")
        self._names, self._defaults = served_names(settings)
        self._open: dict[str, ServedModel] = {}

    @property
    def readiness(self) -> Readiness:
        """Whether the service answers requests, and why not."""
        return self._readiness

    async def start(self) -> None:
        """Load the models that requests use by default, and run each once. Raises UsageError, WeightsError."""
        for task in self._defaults:
            await self.open(None, task)
        self._readiness = Readiness(True)

    async def infer(
        self,
        images: Sequence[bytes | ImageError],
        *,
        model: str | None = None,
        task: Task = "classify",
        deadline: float | None = None,
    ) -> Answer:
        """Decode images and run a model on them; an ImageError is passed through, as is that of a bad image.

        deadline: seconds, at most those of the settings. Raises UsageError `unknown_model`; ServeError `overloaded`,
        `deadline_exceeded`, `draining`, `not_ready`, `too_many_images`.
        """
        start = self._clock()
        served = await self.open(model, task)
        reader = ImageReader(served.spec, self.settings.transform, self.settings.policy, self.settings.limits)
        decoded = await asyncio.to_thread(
            lambda: [image if isinstance(image, ImageError) else reader.read(image) for image in images]
        )
        timing = dict(decode=1000 * (self._clock() - start), queue=0.0)
        good = [pixels for pixels in decoded if not isinstance(pixels, ImageError)]
        answer = await self.infer_pixels(np.stack(good), model=model, task=task) if good else None
        outputs = iter(answer.outcomes if answer else ())
        outcomes = [item if isinstance(item, ImageError) else next(outputs) for item in decoded]
        sizes = [(0, 0) if isinstance(item, ImageError) else (item.shape[1], item.shape[0]) for item in decoded]
        timing |= dict(model=answer.timing["model"] if answer else 0.0, total=1000 * (self._clock() - start))
        return Answer(served, outcomes, sizes, timing)

    async def infer_pixels(
        self,
        pixels_NHWC: Pixels,
        *,
        model: str | None = None,
        task: Task = "classify",
        deadline: float | None = None,
    ) -> Answer:
        """Run a model on decoded images, (N,H,W,3) uint8 of the model's size. Raises as `infer`.

        Raises UsageError `wrong_input_size` for another shape.
        """
        start = self._clock()
        served = await self.open(model, task)
        expected = (served.spec.height, served.spec.width, 3)
        if pixels_NHWC.shape[1:] != expected or pixels_NHWC.dtype != np.uint8:
            raise UsageError("wrong_input_size", f"images are {pixels_NHWC.shape[1:]}, expected {expected} uint8")
        logits, embeddings = await asyncio.to_thread(served.predictor.engine, pixels_NHWC)
        outcomes: list[Output | ImageError] = [Output(*row) for row in zip(logits, embeddings, strict=True)]
        elapsed = 1000 * (self._clock() - start)
        sizes = [(served.spec.width, served.spec.height)] * len(outcomes)
        return Answer(served, outcomes, sizes, dict(decode=0.0, queue=0.0, model=elapsed, total=elapsed))

    async def open(self, model: str | None, task: Task = "classify") -> ServedModel:
        """Return a model, which is loaded first if necessary. Raises UsageError `unknown_model`; WeightsError."""
        name = self._defaults[task] if model is None else model
        if name not in self._names:
            raise UsageError("unknown_model", f"no model {name!r} is served")
        if self._readiness.reason == "draining":
            raise ServeError("draining", "the server is shutting down")
        if name not in self._open:
            settings = self.settings
            predictor = await asyncio.to_thread(
                load,
                self._names[name],
                device=settings.device,
                precision=settings.precision,
                engine=settings.engine,
                batch_size=settings.batch_size,
                transform=settings.transform,
                policy=settings.policy,
            )
            self._open[name] = await asyncio.to_thread(ServedModel.of, name, predictor)
        return self._open[name]

    def models(self) -> list[ModelStatus]:
        """Return the models of this server, the first one first."""
        return [
            ModelStatus(
                name,
                "ready" if name in self._open else "unloaded",
                self._open.get(name),
                tuple(task for task, default in self._defaults.items() if default == name),
            )
            for name in self._names
        ]

    async def drain(self) -> None:
        """Stop: not ready at once, and return when all requests that were accepted are answered."""
        self._readiness = Readiness(False, "draining")

    async def close(self) -> None:
        """End all threads and processes."""
        self._readiness = Readiness(False, "closed")


def served_names(settings: ServeSettings) -> tuple[dict[str, str], dict[Task, str]]:
    """Return what `tessella.load` takes by the name that clients use, and the default model of each task.

    Raises UsageError for names that do not exist, and for two models that clients could not distinguish.
    """
    names = {public_name(name): name for name in map(full_name, settings.models)}
    if len(names) < len(set(settings.models)):
        raise UsageError("bad_argument", "two of the models have the same name", hint="rename one of the folders")
    tasks: tuple[Task, ...] = ("classify", "embed")
    defaults = dict.fromkeys(tasks, next(iter(names))) if names else {task: default_model(task) for task in tasks}
    names |= {name: name for name in defaults.values() if name not in names}
    if settings.index is not None and (indexed := model_of(settings.index)) is not None:
        names.setdefault(public_name(indexed), indexed)
    return names, defaults
