"""The client for asyncio: the same calls as `Client`, as coroutines."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

from ..checks import check_type, checked
from ..data.decode import PillowImage
from ..data.source import Source
from ..errors import ServeError
from ..inputs import AnyImage, list_images
from ..pipeline import until_failure, with_keys
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


class AsyncClient(ClientBase):
    """A connection to `tessella serve` for asyncio; see `Client`, which has the same calls and results.

    Images are read in threads, so that the event loop is not held up. Use it in an `async with` statement, or await
    `close`; it belongs to the event loop of its first call.
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
        """Prepare a client; nothing is sent yet. Arguments and errors (UsageError) are those of `Client`."""
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
        self._connections: httpx2.AsyncClient | None = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the next call would open new ones."""
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.aclose()

    # --- results ------------------------------------------------------------------------------------------------------

    async def predict(self, images: AnyImage | Iterable[AnyImage]) -> Scores:
        """Return probabilities (N,classes) and embeddings (N,width), as `Client.predict`."""
        _, records = await self._all(images, ALL_CLASSES, embed=True)
        return scores_of(records, self._server)

    @overload
    async def classify(
        self, images: bytes | bytearray | memoryview | Source | PillowImage, top: int = 5
    ) -> list[Prediction]: ...

    @overload
    async def classify(
        self, images: str | os.PathLike[str] | IO[bytes] | NDArray[np.generic] | Tensor, top: int = 5
    ) -> list[Any]: ...

    @overload
    async def classify(self, images: Iterable[AnyImage], top: int = 5) -> list[list[Prediction]]: ...

    async def classify(
        self, images: AnyImage | Iterable[AnyImage], top: int = 5
    ) -> list[Prediction] | list[list[Prediction]]:
        """Return the `top` most probable classes, as `Client.classify`. Raises ImageError, ServeError, UsageError."""
        single, records = await self._all(images, top, embed=False)
        predictions = [list(record.top) for record in records]
        return predictions[0] if single else predictions

    async def embed(self, images: AnyImage | Iterable[AnyImage]) -> FloatArray:
        """Return embeddings of unit length, (width,) or (N,width), as `Client.embed`."""
        single, records = await self._all(images, 0, embed=True)
        vectors = stack_embeddings(records, self._server)
        return vectors[0] if single else vectors

    async def records(
        self,
        images: AnyImage | Iterable[object],
        *,
        top: int = 5,
        embed: bool = True,
        keys: Iterable[str] | None = None,
    ) -> AsyncGenerator[Record, None]:
        """Yield one Record per image, in order, as `Client.records`.

        The iterable is read in a thread, one item at a time. Leave the loop early only inside
        `contextlib.aclosing`, which ends the requests that are under way.
        """
        top = check_top(top)
        check_type("embed", embed, bool)
        call = Call(top, embed, self.model)
        failures: list[Exception] = []  # of the caller's iterable: raised after the records of earlier images
        pairs = until_failure(with_keys(images, keys), failures)
        requests = make_requests(pairs, self.max_images, self.max_body)
        served: Served | None = None
        waiting: deque[asyncio.Task[tuple[Served | None, list[Record]]]] = deque()
        try:
            more = True
            while more or waiting:
                has_answer = bool(waiting) and waiting[0].done()
                if more and len(waiting) < self.concurrency and not has_answer:
                    request = await asyncio.to_thread(next, requests, None)
                    more = request is not None
                    if request is not None:
                        waiting.append(asyncio.create_task(self._answer(call, request)))
                    continue
                now, records = await waiting[0]
                waiting.popleft()
                if now is not None:
                    check_same_model(served, now, self._server)
                    served = self._served = now
                for record in records:
                    yield record
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        if failures:
            raise failures[0]

    async def _all(self, images: AnyImage | Iterable[AnyImage], top: int, *, embed: bool) -> tuple[bool, list[Record]]:
        """Return whether this is one image, and all records; raise the error of the first bad one."""
        single, items = list_images(images)
        collected: list[Record] = []
        async with aclosing(self.records(items, top=top, embed=embed)) as records:
            async for record in records:
                raise_bad(record, None if single else len(collected))
                collected.append(record)
        return single, collected

    async def _answer(self, call: Call, request: ImageGroup) -> tuple[Served | None, list[Record]]:
        if not request.files:
            return None, call.unsent(request)
        body, content_type = request.body(call.fields)
        answer = await self._send("POST", call.path, body, content_type)
        return call.records(request, answer, self._server)

    # --- other calls --------------------------------------------------------------------------------------------------

    async def search(
        self,
        queries: AnyImage | int | Iterable[AnyImage | int],
        *,
        negative: Iterable[AnyImage | int] = (),
        top: int = 20,
        min_score: float | None = None,
        filter: Mapping[str, object] | None = None,
        group_duplicates: bool = False,
    ) -> Matches:
        """Find the rows of the server's index that are most similar to the queries, as `Client.search`."""
        options = dict(top=check_top(top), min_score=min_score, filter=filter, group_duplicates=group_duplicates)
        body = await asyncio.to_thread(search_body, queries, negative, options, self.max_body)
        return read_matches(await self._send("POST", "v1/search", body, "application/json"), self._server)

    @overload
    async def explain(
        self,
        images: bytes | bytearray | memoryview | Source | PillowImage,
        *,
        target: int | str | None = None,
        versus: int | str | None = None,
        method: str = "auto",
    ) -> ServedExplanation: ...

    @overload
    async def explain(
        self,
        images: str | os.PathLike[str] | IO[bytes] | NDArray[np.generic] | Tensor,
        *,
        target: int | str | None = None,
        versus: int | str | None = None,
        method: str = "auto",
    ) -> Any: ...

    @overload
    async def explain(
        self,
        images: Iterable[AnyImage],
        *,
        target: int | str | None = None,
        versus: int | str | None = None,
        method: str = "auto",
    ) -> list[ServedExplanation]: ...

    async def explain(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        target: int | str | None = None,
        versus: int | str | None = None,
        method: str = "auto",
    ) -> ServedExplanation | list[ServedExplanation]:
        """Explain why the model predicts a class, as `Client.explain`. Raises ImageError, ServeError, UsageError.

        Images are sent one by one, because the server explains one at a time.
        """
        call = ExplainCall(target, versus, method, self.model)
        single, items = list_images(images)
        requests = make_requests(with_keys(items, None), 1, self.max_body)
        found: list[ServedExplanation] = []
        while (request := await asyncio.to_thread(next, requests, None)) is not None:
            position = None if single else len(found)
            call.check(request, position)
            answer = await self._send("POST", PATH, *request.body(call.fields))
            found.append(call.read(request, answer, self._server, position))
        return found[0] if single else found

    async def models(self) -> list[ServerModel]:
        """Return the models of the server, as `Client.models`."""
        return read_models(await self._send("GET", "v1/models"), self._server)

    async def ready(self) -> bool:
        """Return whether the server can be reached and is ready, as `Client.ready`. Raises ServeError, UsageError."""
        try:
            reply = await self._attempt("GET", "readyz", b"", "", Attempts(self.timeout, 0))
        except ServeError as error:
            if error.code != "server_unavailable":
                raise
            return False
        if reply.status not in (200, 503):
            raise error_of(reply, self._server)
        return reply.status == 200

    # --- HTTP ---------------------------------------------------------------------------------------------------------

    async def _send(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> bytes:
        """Return the body of the answer with status 200; repeat the request as long as that can help."""
        attempts = Attempts(self.timeout, self.retries)
        while True:
            reply = None
            try:
                reply = await self._attempt(method, path, body, content_type, attempts)
                if reply.status == 200:
                    return reply.body
                error = error_of(reply, self._server)
            except ServeError as failure:
                if failure.code != "server_unavailable":
                    raise
                error = failure
            await asyncio.sleep(attempts.delay_after(error, reply))

    async def _attempt(self, method: str, path: str, body: bytes, content_type: str, attempts: Attempts) -> Reply:
        """Make one request. Raises ServeError `server_unavailable` if there is no complete answer in time."""
        import httpx2

        try:
            async with (
                asyncio.timeout(attempts.remaining),
                self._open().stream(
                    method,
                    f"{self.url}/{path}",
                    headers=request_headers(attempts, content_type),
                    content=body or None,
                    timeout=self._timeouts(attempts),
                ) as response,
            ):
                received = bytearray()
                async for chunk in response.aiter_bytes():
                    received += chunk
                    if len(received) > MAX_ANSWER:
                        raise bad_answer(self._server, "it is too large")
                return Reply(response.status_code, dict(response.headers), bytes(received))
        except TimeoutError:
            raise unreachable(self._server, None) from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            raise unreachable(self._server, error) from None

    def _open(self) -> httpx2.AsyncClient:
        """Return the connections, which are opened when they are first used."""
        import httpx2

        if self._connections is None:
            self._connections = httpx2.AsyncClient(
                headers=self._headers(),
                trust_env=not self._is_local,  # a proxy could not reach this machine
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=self.concurrency),
            )
        return self._connections
