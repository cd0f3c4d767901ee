"""The client for ordinary code: calls return when all results are there."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ..checks import check_type, checked
from ..data.decode import PillowImage
from ..data.source import Source
from ..errors import ServeError
from ..inputs import AnyImage, list_images
from ..pipeline import defer_failure, with_keys
from ..results import FloatArray, Prediction, Record, Scores, check_top
from .explanations import PATH, ExplainCall, ServedExplanation
from .images import ImageGroup, make_requests
from .protocol import (
    ALL_CLASSES,
    Call,
    Matches,
    Served,
    ServerModel,
    bad_answer,
    check_same_model,
    error_of,
    raise_bad,
    read_matches,
    read_models,
    scores_of,
    search_body,
    stack_embeddings,
    unreachable,
)
from .retries import Attempts, Reply
from .settings import MAX_ANSWER, ClientBase, request_headers

if TYPE_CHECKING:
    import httpx2
    from torch import Tensor

_PIECE = 65_536  # bytes of a body that are sent before the clock is looked at


class Client(ClientBase):
    """A connection to `tessella serve`, with the calls and the results of a `Predictor`; threads may share it.

    Images are those that a Predictor takes. They are read on this machine and sent in several requests at once; result
    i belongs to image i. A request that is refused because the server is busy, or that gets no answer, is repeated
    after the time that the server asks for. Use a client in a `with` statement, or call `close`.
    """

    @checked
    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        model: str | None = None,
        timeout: float = 60.0,
        retries: int = 10,
        concurrency: int = 4,
        max_images: int = 16,
        max_body: int = 32 * 1024 * 1024,
    ):
        """Prepare a client; nothing is sent yet.

        url: of the server, such as "http://127.0.0.1:8000". token: of the server, if it has one. model: a model of the
        server; None for its default. timeout: seconds for a request with all its retries; a call with many images makes
        many requests. retries: attempts after the first one. concurrency: requests at once. max_images, max_body:
        images and bytes of a request, which the server limits, too. Raises UsageError `bad_argument`.
        """
        super().__init__(
            url,
            token=token,
            model=model,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            max_images=max_images,
            max_body=max_body,
        )
        self._lock = threading.Lock()
        self._connections: httpx2.Client | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the next call would open new ones."""
        with self._lock:
            if self._connections is not None:
                self._connections.close()
                self._connections = None

    # --- results ------------------------------------------------------------------------------------------------------

    def predict(self, images: AnyImage | Iterable[AnyImage]) -> Scores:
        """Return probabilities (N,classes) and embeddings (N,width) of one image (N = 1) or of many.

        Without a model of the client, this is the server's default for embeddings. Raises as `classify`.
        """
        _, records = self._all(images, ALL_CLASSES, embed=True)
        return scores_of(records, self._server)

    @overload
    def classify(
        self, images: bytes | bytearray | memoryview | Source | PillowImage, top: int = 5
    ) -> list[Prediction]: ...

    @overload
    def classify(
        self, images: str | os.PathLike[str] | IO[bytes] | NDArray[np.generic] | Tensor, top: int = 5
    ) -> list[Any]: ...

    @overload
    def classify(self, images: Iterable[AnyImage], top: int = 5) -> list[list[Prediction]]: ...

    def classify(
        self, images: AnyImage | Iterable[AnyImage], top: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """Return the `top` most probable classes, best first: a list for one image, a list of lists for many.

        Raises ImageError for the first image that cannot be read, here or on the server; `records` continues after bad
        images. Raises ServeError if the server cannot be reached, is too busy until the time is over, or gives a wrong
        answer, and UsageError for a request that it refuses, such as `unauthorized` or `unknown_model`.
        """
        single, records = self._all(images, top, embed=False)
        predictions = [list(record.top) for record in records]
        return predictions[0] if single else predictions

    def embed(self, images: AnyImage | Iterable[AnyImage]) -> FloatArray:
        """Return embeddings of unit length: (width,) or, for many images, (N,width). Raises as `classify`."""
        single, records = self._all(images, 0, embed=True)
        vectors = stack_embeddings(records, self._server)
        return vectors[0] if single else vectors

    def records(
        self,
        images: AnyImage | Iterable[object],
        *,
        top: int = 5,
        embed: bool = True,
        keys: Iterable[str] | None = None,
    ) -> Generator[Record, None, None]:
        """Yield one Record per image, in order, as answers arrive; a bad image is a record with its error's code.

        Arguments are those of `Predictor.records`. Records of a calibrated model have an assessment; `calibration` says
        what it means. The message of an image that the server refuses is the text of its code. Raises ServeError and
        UsageError as `classify`.
        """
        top = check_top(top)
        check_type("embed", embed, bool)
        call = Call(top, embed, self.model)
        return defer_failure(with_keys(images, keys), lambda pairs: self._stream(call, pairs))

    def _all(self, images: AnyImage | Iterable[AnyImage], top: int, *, embed: bool) -> tuple[bool, list[Record]]:
        """Return whether this is one image, and all records; raise the error of the first bad one."""
        single, items = list_images(images)
        records = []
        for position, record in enumerate(self.records(items, top=top, embed=embed)):
            raise_bad(record, None if single else position)
            records.append(record)
        return single, records

    def _stream(self, call: Call, pairs: Iterator[tuple[str, object]]) -> Iterator[Record]:
        """Yield records in order, while later requests are under way."""
        stop = threading.Event()
        served: Served | None = None
        waiting: deque[Future[tuple[Served | None, list[Record]]]] = deque()

        def finished() -> list[Record]:
            nonlocal served
            now, records = waiting.popleft().result()
            if now is not None:
                check_same_model(served, now, self._server)
                served = self._served = now
            return records

        with ThreadPoolExecutor(self.concurrency, "tessella-client") as pool:
            try:
                for request in make_requests(pairs, self.max_images, self.max_body):
                    waiting.append(pool.submit(self._answer, call, request, stop))
                    while len(waiting) > self.concurrency or (waiting and waiting[0].done()):
                        yield from finished()
                while waiting:
                    yield from finished()
            finally:
                stop.set()
                for future in waiting:
                    future.cancel()

    def _answer(self, call: Call, request: ImageGroup, stop: threading.Event) -> tuple[Served | None, list[Record]]:
        if not request.files:
            return None, call.unsent(request)
        body, content_type = request.body(call.fields)
        answer = self._send("POST", call.path, body, content_type, stop)
        return call.records(request, answer, self._server)

    # --- other calls --------------------------------------------------------------------------------------------------

    def search(
        self,
        queries: AnyImage | int | Iterable[AnyImage | int],
        *,
        negative: Iterable[AnyImage | int] = (),
        top: int = 20,
        min_score: float | None = None,
        filter: Mapping[str, object] | None = None,
        group_duplicates: bool = False,
    ) -> Matches:
        """Find the rows of the server's index that are most similar to the queries, best first.

        queries, negative: images, or rows of the index by number; results are near the former and far from the latter.
        filter: conditions such as {"label": ["cat"], "min_width": 640}; {"unknown": False} leaves out images that show
        none of the model's classes. group_duplicates: return one row per group of duplicates, with the others in its
        `duplicates`. Raises as `classify`; UsageError `not_found` without an index,
        and for a row that is not in it.
        """
        options = dict(top=check_top(top), min_score=min_score, filter=filter, group_duplicates=group_duplicates)
        body = search_body(queries, negative, options, self.max_body)
        return read_matches(self._send("POST", "v1/search", body, "application/json"), self._server)

    @overload
    def explain(
        self,
        images: bytes | bytearray | memoryview | Source | PillowImage,
        *,
        target: int | str | None = None,
        versus: int | str | None = None,
        method: str = "auto",
    ) -> ServedExplanation: ...

    @overload
    def explain(
        self,
        images: str | os.PathLike[str] | IO[bytes] | NDArray[np.generic] | Tensor,
        *,
        target: int | str | None = None,
        versus: int | str | None = None,
        method: str = "auto",
    ) -> Any: ...

    @overload
    def explain(
        self,
        images: Iterable[AnyImage],
        *,
        target: int | str | None = None,
        versus: int | str | None = None,
        method: str = "auto",
    ) -> list[ServedExplanation]: ...

    def explain(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        target: int | str | None = None,
        versus: int | str | None = None,
        method: str = "auto",
    ) -> ServedExplanation | list[ServedExplanation]:
        """Explain why the model predicts a class for each image: one ServedExplanation for one image, a list for many.

        target: the class to explain, by name or index; None takes the most probable one of each image. versus: a class
        to compare with. method: "auto" takes the one that scored best for the kind of model. Images are sent one by
        one, because the server explains one at a time. Raises as `classify`; UsageError `unprocessable` for a class or
        method that the model does not have, `missing_dependency` if the server has no PyTorch.
        """
        call = ExplainCall(target, versus, method, self.model)
        single, items = list_images(images)
        found = []
        for number, request in enumerate(make_requests(with_keys(items, None), 1, self.max_body)):
            position = None if single else number
            call.check(request, position)
            answer = self._send("POST", PATH, *request.body(call.fields))
            found.append(call.read(request, answer, self._server, position))
        return found[0] if single else found

    def models(self) -> list[ServerModel]:
        """Return the models of the server, the first one first. Raises ServeError, UsageError as `classify`."""
        return read_models(self._send("GET", "v1/models"), self._server)

    def ready(self) -> bool:
        """Return whether the server can be reached and is ready for requests; it is asked once.

        Raises ServeError `server_failed` or UsageError if it answers with something else.
        """
        try:
            reply = self._attempt("GET", "readyz", b"", "", Attempts(self.timeout, 0))
        except ServeError as error:
            if error.code != "server_unavailable":
                raise
            return False
        if reply.status not in (200, 503):
            raise error_of(reply, self._server)
        return reply.status == 200

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    def _send(
        self, method: str, path: str, body: bytes = b"", content_type: str = "", stop: threading.Event | None = None
    ) -> bytes:
        """Return the body of the answer with status 200; repeat the request as long as that can help.

        stop: ends the wait between two attempts.
        """
        attempts, stop = Attempts(self.timeout, self.retries), stop or threading.Event()
        while True:
            reply = None
            try:
                reply = self._attempt(method, path, body, content_type, attempts)
                if reply.status == 200:
                    return reply.body
                error = error_of(reply, self._server)
            except ServeError as failure:
                if failure.code != "server_unavailable":
                    raise
                error = failure
            if stop.wait(attempts.delay_after(error, reply)):
                raise error

    def _attempt(self, method: str, path: str, body: bytes, content_type: str, attempts: Attempts) -> Reply:
        """Make one request. Raises ServeError `server_unavailable` if there is no complete answer in time."""
        import httpx2

        headers = request_headers(attempts, content_type)
        if body:
            headers["Content-Length"] = str(len(body))
        try:
            with self._open().stream(
                method,
                f"{self.url}/{path}",
                headers=headers,
                content=_pieces(body, attempts) if body else None,
                timeout=self._timeouts(attempts),
            ) as response:
                received = bytearray()
                for chunk in response.iter_bytes():
                    received += chunk
                    if not attempts.remaining:
                        raise unreachable(self._server, None)
                    if len(received) > MAX_ANSWER:
                        raise bad_answer(self._server, "it is too large")
                return Reply(response.status_code, dict(response.headers), bytes(received))
        except TimeoutError:  # of `_pieces`
            raise unreachable(self._server, None) from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise unreachable(self._server, error) from None

    def _open(self) -> httpx2.Client:
        """Return the connections, which are opened when they are first used."""
        import httpx2

        with self._lock:
            if self._connections is None:
                self._connections = httpx2.Client(
                    headers=self._headers(),
                    trust_env=not self._is_local,  # a proxy could not reach this machine
                    limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self.concurrency),
                )
            return self._connections


def _pieces(body: bytes, attempts: Attempts) -> Iterator[bytes]:
    """Yield a body in pieces until the time is over, however slowly the server takes them."""
    view = memoryview(body)
    for start in range(0, len(body), _PIECE):
        if not attempts.remaining:
            raise TimeoutError
        yield bytes(view[start : start + _PIECE])
