"""The models of a server: opened on demand, unloaded when nobody uses them, within a memory budget."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from ..allocator import return_freed_memory
from ..bulk.run_folder import model_of
from ..calibration.calibration import Calibration
from ..data.spec import InputSpec
from ..engine import Plan
from ..engine.exported import is_exported
from ..engine.plan import streams_for
from ..errors import ImageError, ServeError, TessellaError, UsageError, WeightsError
from ..fingerprint import hash_identity, identify
from ..info import info
from ..machine import NICE, lower_priority, thread_count, total_memory
from ..predictor import Predictor, load
from ..results import ClassNames, Output, Record, make_record
from ..weights.catalogue import Task, default_model, resolve
from ..weights.names import local_folder
from .request import ImageLane
from .self_test import self_test
from .settings import ServeSettings

State = Literal["unloaded", "loading", "ready", "failed"]
Value = TypeVar("Value")
RETRY_SECONDS = 5.0  # after a failed load, until a request causes another one
# Multiples of the weights and, per stream, of the activations of one image that a model takes in memory: the runtime
# has a packed copy of the weights, and reuses the buffers of activations. Five models of four families, from 21 to 208
# million parameters, took 0.37 to 0.98 of what these estimate.
WEIGHTS_FACTOR, ACTIVATIONS_FACTOR = 2.5, 1.25
MAX_LISTED = 100  # classes of a prediction set: listing 600 of 1,000 would take longer than a small model
TASKS: tuple[Task, ...] = ("classify", "embed")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """Facts of a model that was opened; they stay valid when it is unloaded.

    source: as `tessella.load` takes it. explained: the fingerprint of the same weights in float32, as explanations use
    them; "" for an exported model, which has no module that could be explained. calibration: None for plain softmax.
    """

    name: str
    source: str
    fingerprint: str
    num_classes: int
    width: int  # of the embedding
    labels: Sequence[str]
    spec: InputSpec
    plan: Plan
    explained: str
    classes: ClassNames = field(repr=False)
    calibration: Calibration | None = field(repr=False)

    @classmethod
    def of(cls, name: str, source: str, predictor: Predictor) -> ServedModel:
        """Return the facts of an opened model. Its fingerprint may take a moment, as the weights are hashed."""
        return cls(
            name,
            source,
            predictor.fingerprint,
            predictor.num_classes,
            predictor.width,
            predictor.labels,
            predictor.spec,
            predictor.plan,
            _float32_fingerprint(predictor),
            ClassNames(predictor.labels, predictor.synsets),
            predictor.calibration,
        )

    def record(self, key: str, outcome: Output | ImageError, *, top: int, embed: bool) -> Record:
        """Return the record of one image: its `top` classes, assessed if there is a calibration, and its embedding.

        Of a prediction set, MAX_LISTED classes are listed.
        """
        return make_record(
            key, outcome, self.classes, top=top, embed=embed, calibration=self.calibration, most_listed=MAX_LISTED
        )


@dataclass(frozen=True)
class ModelStatus:
    """A model that the server offers.

    model: None if it was never opened. default_for: requests that name no model.
    """

    name: str
    state: State
    model: ServedModel | None
    default_for: tuple[Task, ...]


class HostedModel:
    """A model in memory. It is unloaded only while it has no users."""

    def __init__(self, model: ServedModel, lane: ImageLane, clock: Callable[[], float]):
        self.model, self.lane, self._clock = model, lane, clock
        self.users = 0
        self.last_used = clock()

    def release(self) -> None:
        """End a use that `ModelHost.acquire` began."""
        self.users -= 1
        self.last_used = self._clock()


class _Entry:
    """A name that the server offers."""

    def __init__(self, name: str, source: str):
        self.name, self.source = name, source  # source: as `tessella.load` takes it
        self.model: ServedModel | None = None
        self.hosted: HostedModel | None = None
        self.loading: asyncio.Task[None] | None = None
        self.memory = 0  # bytes that are reserved for it
        self.error: TessellaError | None = None  # of the last attempt to load it
        self.failed_at = 0.0

    @property
    def state(self) -> State:
        if self.hosted is not None:
            return "ready"
        return "loading" if self.loading is not None else "failed" if self.error is not None else "unloaded"


class ModelHost:
    """Opens models in threads of their own when they are first used. All methods are called in the event loop.

    on_loaded, on_unloaded: called with each model that was opened or unloaded. Creating a host raises UsageError for
    names that do not exist.
    """

    def __init__(
        self,
        settings: ServeSettings,
        *,
        on_loaded: Callable[[ServedModel], None] = lambda model: None,
        on_unloaded: Callable[[ServedModel], None] = lambda model: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._settings, self._clock = settings, clock
        self._on_loaded, self._on_unloaded = on_loaded, on_unloaded
        names, self.defaults = served_names(settings)
        self._entries = {name: _Entry(name, source) for name, source in names.items()}
        self._first = next(iter(self._entries.values()))
        self._closed = False
        self._releasing = 0  # bytes of models that are being unloaded
        self.reserved = 0  # bytes of another process that count as those of a model
        self.memory_limit = settings.memory_limit or total_memory() // 2

    @property
    def memory(self) -> int:
        """Bytes of the models in memory, of those being loaded or unloaded, and those that are reserved."""
        return self.reserved + self._releasing + sum(entry.memory for entry in self._entries.values())

    def statuses(self) -> list[ModelStatus]:
        """Return all models that are offered, the first one first."""
        return [
            ModelStatus(name, entry.state, entry.model, tuple(task for task in TASKS if self.defaults[task] == name))
            for name, entry in self._entries.items()
        ]

    def is_loaded(self, name: str | None, task: Task) -> bool:
        """Return whether `acquire` would not have to wait for this model."""
        entry = self._entries.get(self.defaults[task] if name is None else name)
        return entry is not None and entry.hosted is not None

    async def acquire(self, name: str | None, task: Task) -> HostedModel:
        """Return a model, which is loaded first if necessary; its `release` must be called once.

        Requests for a model that is being loaded wait for it. After a failed load they fail with the same error for
        RETRY_SECONDS; the next one tries again. Raises UsageError `unknown_model`, ServeError `overloaded` or
        `not_ready` if there is no memory for it and `draining` after `close`, and the errors of `tessella.load`.
        """
        entry = self._entries.get(self.defaults[task] if name is None else name)
        if entry is None:
            raise UsageError("unknown_model", f"no model {name!r} is served")
        while (hosted := entry.hosted) is None:
            if self._closed:
                raise ServeError("draining", "the server is stopping")
            if entry.loading is None:
                if entry.error is not None and self._clock() < entry.failed_at + RETRY_SECONDS:
                    raise _copy(entry.error)
                entry.loading = asyncio.create_task(self._load(entry))
            await asyncio.wait([entry.loading])  # others wait for it, too; `close` may cancel it before its first step
            if entry.hosted is None and entry.error is not None:
                raise _copy(entry.error)
        hosted.users += 1
        return hosted

    async def unload_idle(self) -> None:
        """Unload the models that nobody has used for `idle_minutes`, except the first one."""
        if self._settings.idle_minutes is None:
            return
        before = self._clock() - 60 * self._settings.idle_minutes
        for entry in self._unused():
            if entry.hosted is not None and entry.hosted.last_used <= before:
                await self._unload(entry)

    async def close(self) -> None:
        """Forget all models, and load none any more. A load in progress is abandoned; its thread ends by itself."""
        self._closed = True
        for entry in self._entries.values():
            if entry.loading is not None:
                entry.loading.cancel()
                await asyncio.wait([entry.loading])
                entry.loading = None  # if it was canceled before its first step
            if entry.hosted is not None:
                await self._unload(entry)

    async def _load(self, entry: _Entry) -> None:
        """Load a model. Never raises: those who wait for it read the error from the entry."""
        try:
            needed = await in_thread(lambda: memory_needed(entry.source))
            await self._make_room(entry, needed)
            model, lane = await in_thread(lambda: _open(entry.name, entry.source, self._settings))
            entry.model, entry.hosted, entry.error = model, HostedModel(model, lane, self._clock), None
            self._on_loaded(model)
        except TessellaError as error:
            entry.error = error
        except asyncio.CancelledError:  # by `close`
            entry.error = ServeError("draining", "the server is stopping")
        except Exception:
            log.exception("%s could not be loaded", entry.name)
            entry.error = WeightsError("conversion_failed", f"{entry.name} could not be loaded")
        finally:
            entry.loading = None
            if entry.hosted is None:
                entry.memory, entry.failed_at = 0, self._clock()

    async def _make_room(self, entry: _Entry, needed: int) -> None:
        """Reserve memory for a model, and unload others for it: the one that was used the longest time ago first.

        Raises ServeError: `overloaded` while others are in use, `not_ready` if it would not fit beside the first one.
        """
        if entry is not self._first:
            if self._first.memory + needed > self.memory_limit:
                raise ServeError(
                    "not_ready",
                    f"{entry.name} needs {needed:,} bytes of memory, the limit for all models is {self.memory_limit:,}",
                )
            await self._free(needed, entry.name)
        elif needed > self.memory_limit:
            log.warning("%s needs %d bytes of memory, more than the limit for all models", entry.name, needed)
        entry.memory = needed

    async def _free(self, needed: int, purpose: str) -> None:
        """Unload models until there is enough memory. Raises ServeError `overloaded` while they are in use."""
        while self.memory + needed > self.memory_limit:
            if not (unused := self._unused()):
                raise ServeError("overloaded", f"the memory that {purpose} needs is in use by other models")
            await self._unload(unused[0])

    async def reserve(self, needed: int, purpose: str) -> None:
        """Count `needed` bytes, in total, as reserved for another process; models are unloaded for it if necessary.

        Raises ServeError `not_ready` if that does not fit beside the first model, `overloaded` as for a model.
        """
        if needed <= self.reserved:
            return
        if self._first.memory + needed > self.memory_limit:
            raise ServeError(
                "not_ready", f"{purpose} needs {needed:,} bytes of memory, the limit is {self.memory_limit:,}"
            )
        await self._free(needed - self.reserved, purpose)
        self.reserved = max(self.reserved, needed)

    def _unused(self) -> list[_Entry]:
        """Return the models in memory without users, except the first, in the order of their last use."""
        unused = [
            (entry.hosted.last_used, i, entry)
            for i, entry in enumerate(self._entries.values())
            if entry.hosted is not None and not entry.hosted.users and entry is not self._first
        ]
        return [entry for _, _, entry in sorted(unused)]

    async def _unload(self, entry: _Entry) -> None:
        assert entry.model is not None
        entry.hosted = None
        self._on_unloaded(entry.model)  # now, since a request may load the model again while its memory is returned
        released, entry.memory = entry.memory, 0
        self._releasing += released
        try:
            await in_thread(return_freed_memory)
        finally:
            self._releasing -= released


def _open(name: str, source: str, settings: ServeSettings) -> tuple[ServedModel, ImageLane]:
    lower_priority(NICE)  # the threads that an engine starts inherit it, so that requests are read while models run
    return _prepare(name, source, open_predictor(source, settings))


def open_predictor(source: str, settings: ServeSettings) -> Predictor:
    """Open a model with the settings of the server. Raises as `tessella.load`."""
    return load(
        source,
        device=settings.device,
        precision=settings.precision,
        engine=settings.engine,
        batch_size=settings.batch_size,
        transform=settings.transform,
        policy=settings.policy,
        calibration="auto" if settings.calibrated else None,
    )


def memory_needed(source: str) -> int:
    """Return an estimate of the bytes that a model takes, from the numbers of its weights and activations.

    It is known before anything is loaded. The growth of the process would be known only afterwards, and would include
    the requests that are answered meanwhile. Raises the errors of `tessella.info`.
    """
    folder = local_folder(source) if source.startswith("local-dir:") else None
    if folder is not None and is_exported(folder):
        return int(WEIGHTS_FACTOR * sum(path.stat().st_size for path in folder.iterdir() if path.is_file()))
    cost = info(source).cost
    streams = streams_for(thread_count())
    return int(4 * (WEIGHTS_FACTOR * cost.params + ACTIVATIONS_FACTOR * streams * cost.activations))


def _prepare(name: str, source: str, predictor: Predictor) -> tuple[ServedModel, ImageLane]:
    """Test and describe a model. Raises WeightsError if it fails the test."""
    engine = predictor.engine
    self_test(engine, predictor.spec)
    return ServedModel.of(name, source, predictor), ImageLane(
        engine.run_stream, engine.plan.batch_size, engine.plan.streams
    )


def _float32_fingerprint(predictor: Predictor) -> str:
    """Return the fingerprint that the model has in float32; "" for an exported one."""
    if (network := predictor.engine.network) is None:
        return ""
    settings = dict(policy=predictor.policy, transform=predictor.transform, precision="float32")
    return hash_identity(identify(network, predictor.spec), **settings)


def _copy(error: TessellaError) -> TessellaError:
    """Return an equal error: one that is raised by many requests would collect all their tracebacks."""
    return type(error)(error.code, error.message, hint=error.hint)


async def in_thread(function: Callable[[], Value]) -> Value:
    """Call a function in a thread of its own, and return its result; if this is canceled, the thread goes on.

    A daemon thread, unlike those of `asyncio.to_thread`, does not keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Value] = loop.create_future()

    def resolve(value: Value | None, error: BaseException | None) -> None:
        if not future.done():
            future.set_exception(error) if error is not None else future.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value = error = None
        try:
            value = function()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the event loop is closed, because the server has ended meanwhile
            loop.call_soon_threadsafe(resolve, value, error)

    threading.Thread(target=run, name="tessella-load", daemon=True).start()
    return await future


def served_names(settings: ServeSettings) -> tuple[dict[str, str], dict[Task, str]]:
    """Return what `tessella.load` takes by the name that clients use, and the default model of each task.

    Raises UsageError for names that do not exist, and for two models that clients could not distinguish.
    """
    sources = list(dict.fromkeys(map(full_name, settings.models)))
    names = {public_name(source): source for source in sources}
    if len(names) < len(sources):
        raise UsageError("bad_argument", "two of the models have the same name", hint="rename one of the folders")
    if names:
        defaults = dict.fromkeys(TASKS, next(iter(names)))
    else:
        defaults = {task: default_model(task) for task in TASKS}
        names = {name: name for name in defaults.values()}
    if settings.index is not None and (indexed := model_of(settings.index)) is not None:
        names.setdefault(public_name(indexed), indexed)
    return names, defaults


def full_name(name: str) -> str:
    """Return `architecture.tag` for the name of a published model, other names unchanged. Raises UsageError."""
    if ":" in name:
        return name
    arch, row = resolve(name)
    return row.name if row else arch


def public_name(source: str) -> str:
    """Return the name by which clients know a model: a folder is known by its own name, without its path."""
    scheme, _, path = source.partition(":")
    return Path(path).resolve().name if scheme == "local-dir" else source
