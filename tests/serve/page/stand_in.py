"""A small server for tests of the page: the contract of the API over real rows, with faults on demand.

The page's own tests run against it because it starts in a second, and because a test can let it fail. That the real
server answers in the same way is tested in test_real_server.py.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from PIL import Image
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tessella.bulk.run_folder import read_run, row_sources
from tessella.errors import CODES, ImageError, public_text
from tessella.predictor import Predictor
from tessella.records import as_dict
from tessella.results import FloatArray, l2_normalize
from tessella.search.index import HOME, open_seal, sealed_rows
from tessella.search.nearest import vectors_of
from tessella.serve.routes import page

DUPLICATES = 0.95


@dataclass
class Collection:
    """Rows of an index: row objects of the API, embeddings (N,D) of unit length, points (N,2), places of the labels."""

    rows: list[dict[str, Any]]
    vectors: FloatArray
    points: FloatArray
    labels: list[str]
    pictures: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, run: Path) -> Collection:
        """Read the index of a run, and make thumbnails of its images."""
        facts = read_run(run)
        table = sealed_rows(run, facts, open_seal(run / HOME))
        assert table is not None
        vectors_ND = l2_normalize(vectors_of(table["vector"], facts["width"]).astype(np.float32))
        names = ("row", "key", "label", "probability", "width", "height")
        rows = table.select(list(names)).to_pylist()
        counts: dict[str, int] = {}
        for row in rows:
            counts[row["label"]] = counts.get(row["label"], 0) + 1
        centered_ND = vectors_ND - vectors_ND.mean(0)
        _, _, directions = np.linalg.svd(centered_ND, full_matrices=False)
        points_N2 = centered_ND @ directions[:2].T
        points_N2 /= np.abs(points_N2).max()
        pictures = {}
        for row, source in row_sources(run, facts, [row["row"] for row in rows]).items():
            image = Image.open(io.BytesIO(source.read())).convert("RGB")
            image.thumbnail((256, 256))
            image.save(buffer := io.BytesIO(), "JPEG", quality=80)
            pictures[row] = buffer.getvalue()
        labels = sorted(counts, key=lambda label: -counts[label])
        return cls(rows, vectors_ND, points_N2.astype(np.float32), labels, pictures)


@dataclass
class StandIn:
    """The server.

    token: needed if set. calibration: what answers say about that of the model. assessments: fields of the results of
    files, by name. explanation: fields that explanations have instead of their own. failures: answers to give instead,
    by path; each is (status, code, headers).
    """

    collection: Collection | None = None
    predictor: Predictor | None = None
    has_map: bool = True
    token: str | None = None
    can_explain: bool = True
    calibration: dict[str, Any] | None = None
    assessments: dict[str, dict[str, Any]] = field(default_factory=dict)
    explanation: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, list[tuple[int, str, dict[str, str]]]] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    heads: dict[str, Any] = field(default_factory=dict)
    url: str = ""
    thread: threading.Thread | None = None
    server: uvicorn.Server | None = None

    def start(self) -> StandIn:
        """Serve on a free port of this machine until `stop`."""
        self.server = uvicorn.Server(uvicorn.Config(self.app(), port=0, log_level="error", lifespan="off"))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        started = threading.Event()
        startup = self.server.startup

        async def announce(sockets: Any = None) -> None:
            await startup(sockets)
            started.set()

        self.server.startup = announce  # type: ignore[method-assign]
        self.thread.start()
        assert started.wait(60)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def stop(self) -> None:
        """End the server."""
        assert self.server is not None
        assert self.thread is not None
        self.server.should_exit = True
        self.thread.join(60)

    def fail(self, path: str, status: int, code: str, times: int = 1, retry_after: str = "") -> None:
        """Answer the next requests to a path with an error."""
        headers = {"Retry-After": retry_after} if retry_after else {}
        self.failures.setdefault(path, []).extend([(status, code, headers)] * times)

    def sent_to(self, path: str) -> list[Any]:
        """Return the bodies of all requests to a path."""
        return [body for _, other, body in self.requests if other == path]

    def app(self) -> FastAPI:
        """Return the application: the page's own routes, and one handler for the API."""
        app = FastAPI()
        app.include_router(page.router)
        app.add_api_route("/{path:path}", self.answer, methods=["GET", "POST"])
        return app

    async def answer(self, request: Request) -> Response:
        """Answer any request of the API."""
        path = request.url.path
        body: Any = None
        images: list[tuple[str, bytes]] = []
        if request.headers.get("content-type", "").startswith("multipart"):
            body = {}
            async with request.form() as form:
                for name, value in form.multi_items():
                    if isinstance(value, str):
                        body[name] = value
                    else:
                        images.append((value.filename or "", await value.read()))
            if "options" in body:
                body = json.loads(body["options"])
        elif request.method == "POST":
            body = await request.json()
        self.requests.append((request.method, path, body))
        if self.token is not None and request.headers.get("authorization") != f"Bearer {self.token}":
            return problem(401, "unauthorized")
        if self.failures.get(path):
            status, code, headers = self.failures[path].pop(0)
            return problem(status, code, headers)
        if path.startswith("/v1/index/image/"):
            return self.picture(int(path.rsplit("/", 1)[1]))
        handler = getattr(self, f"answer_{path.removeprefix('/v1/').replace('/', '_').replace('.', '_')}", None)
        if handler is None or (
            self.collection is None and not path.startswith(("/v1/classify", "/v1/explain", "/v1/models"))
        ):
            return problem(404, "not_found")
        if path in ("/v1/classify", "/v1/explain"):
            return await asyncio.to_thread(handler, body, images)
        result = handler(images=images, **(body or {}), **request.query_params)
        return result if isinstance(result, Response) else JSONResponse(result)

    # --- the model ------------------------------------------------------------------------------------------------

    def answer_models(self, images: object) -> dict[str, object]:
        """GET /v1/models."""
        names = ["convmixer_256_8_ks3_p4.cifar10", "convmixer_384_8_ks5_p8.photographs"]
        data = [
            dict(
                id=name,
                object="model",
                num_classes=10,
                state="ready",
                default_for=["classify"][i:],
                can_explain=self.can_explain,
            )
            for i, name in enumerate(names)
        ]
        return dict(object="list", data=data)

    def answer_classify(self, fields: dict[str, str], images: list[tuple[str, bytes]]) -> Response:
        """POST /v1/classify."""
        assert self.predictor is not None
        results = []
        for name, data in images:
            (record,) = self.predictor.records([data], top=int(fields["top"]), embed=False, keys=[name])
            entry = as_dict(record)
            if record.status == "ok":
                with Image.open(io.BytesIO(data)) as image:
                    entry |= dict(width=image.width, height=image.height) | self.assessments.get(name, {})
            else:
                entry["message"] = public_text(record.status)
            results.append(entry)
        timing = dict(decode=2.1, queue=0.4, model=9.7, total=12.6)
        facts = dict(model=fields.get("model"), fingerprint="0" * 16, calibration=self.calibration)
        return JSONResponse(facts | dict(results=results, timing_ms=timing))

    def answer_explain(self, fields: dict[str, str], images: list[tuple[str, bytes]]) -> Response:
        """POST /v1/explain: a map of three rows with its largest value at the top right."""
        assert self.predictor is not None
        ((name, data),) = images
        labels = self.predictor.labels
        top = [dict(index=best.index, label=best.label, probability=best.probability) for best in self.top(data)]

        def find(text: str) -> dict[str, Any]:
            index = int(text.removeprefix("index:")) if text.startswith("index:") else labels.index(text)
            return next((best for best in top if best["index"] == index), {}) or dict(
                index=index, label=labels[index], probability=0.001
            )

        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
        Image.new("RGB", (96, 96), "olive").save(buffer := io.BytesIO(), "PNG")
        side, picture = min(width, height), base64.b64encode(buffer.getvalue()).decode()
        left, upper = (width - side) / 2, (height - side) / 2
        result = dict(
            key=name,
            status="ok",
            top=top,
            target=find(fields["class"]) if "class" in fields else top[0],
            versus=find(fields["versus"]) if "versus" in fields else None,
            method="exact" if fields["method"] == "auto" else fields["method"],
            methods=["exact", "grad-cam"],
            reason="it scored best" if fields["method"] == "auto" else "requested",
            layer="",
            map=[[0.5, 1.0, 4.0], [0.0, -2.0, 1.0], [0.0, 0.5, 0.25]],
            total=5.25 if fields["method"] == "auto" else None,
            faithful=True,
            verdict="faithful",
            verdict_reason="better than 97.5 % of random maps in deletion, insertion and correlation",
            scores=dict(
                deletion=dict(value=-1.5, random=[2.5, 4.0], goal="lower", is_better=True),
                insertion=dict(value=5.0, random=[2.0, 4.5], goal="higher", is_better=True),
                correlation=dict(value=0.05, random=[-0.25, 0.25], goal="higher", is_better=False),
            ),
            overlay=f"data:image/png;base64,{picture}",
            box=[left, upper, left + side, upper + side],
            width=width,
            height=height,
        )
        timing = dict(decode=9.0, queue=0.1, start=2900.0, load=150.0, explain=800.0, total=3860.0)
        body = dict(model=fields["model"], fingerprint="0" * 16, results=[result | self.explanation], timing_ms=timing)
        return JSONResponse(body)

    def top(self, data: bytes) -> list[Any]:
        """Return the most probable classes of an image."""
        assert self.predictor is not None
        return self.predictor.classify(data)

    # --- the index ------------------------------------------------------------------------------------------------

    @property
    def data(self) -> Collection:
        """The collection, which this server has."""
        assert self.collection is not None
        return self.collection

    @property
    def listed(self) -> int:
        """The number of rows of the run, of which some may not be in the index."""
        return max(row["row"] for row in self.data.rows) + 2

    def answer_index(self, images: object) -> dict[str, object]:
        """GET /v1/index."""
        rows = self.data.rows
        counts = {label: sum(row["label"] == label for row in rows) for label in self.data.labels}
        sizes = {side: [row[side] for row in rows] for side in ("width", "height")}
        return dict(
            rows=len(rows),
            listed=self.listed,
            model="convmixer_384_8_ks5_p8.photographs",
            fingerprint="0" * 16,
            has_map=self.has_map,
            labels=[dict(label=label, count=count) for label, count in counts.items()],
            unknown=sum(row["unknown"] for row in rows) if "unknown" in rows[0] else None,
            width_range=[min(sizes["width"]), max(sizes["width"])],
            height_range=[min(sizes["height"]), max(sizes["height"])],
            heads=list(self.heads),
        )

    def answer_index_map(self, images: object) -> Response:
        """GET /v1/index/map."""
        points = np.full((self.listed, 2), np.nan, "<f4")
        points[[row["row"] for row in self.data.rows]] = self.data.points
        return Response(points.tobytes(), media_type="application/octet-stream")

    def answer_index_labels_bin(self, images: object) -> Response:
        """GET /v1/index/labels.bin."""
        place = {label: i for i, label in enumerate(self.data.labels)}
        labels = np.full(self.listed, 65_535, "<u2")
        labels[[row["row"] for row in self.data.rows]] = [place[row["label"]] for row in self.data.rows]
        return Response(labels.tobytes(), media_type="application/octet-stream")

    def answer_index_rows(self, images: object, start: str, count: str) -> dict[str, object]:
        """GET /v1/index/rows."""
        return dict(rows=self.data.rows[int(start) : int(start) + int(count)])

    def answer_index_select(self, images: object, filter: dict[str, Any], start: int, count: int) -> dict[str, object]:
        """POST /v1/index/select."""
        found = self.matching(filter)
        return dict(matching=len(found), rows=[self.data.rows[i] for i in found[start : start + count]])

    def answer_index_export(
        self, images: object, format: str, rows: list[int] | None = None, filter: dict[str, Any] | None = None
    ) -> Response:
        """POST /v1/index/export."""
        chosen = self.matching(filter) if filter is not None else [self.position(row) for row in rows or []]
        keys = [self.data.rows[i]["key"] for i in chosen]
        return Response("".join(f"{key}\n" for key in (["key"] if format == "csv" else []) + keys))

    def answer_search(
        self,
        images: list[tuple[str, bytes]],
        queries: Sequence[dict[str, Any]] = (),
        top: int = 20,
        start: int = 0,
        **options: Any,
    ) -> dict[str, object]:
        """POST /v1/search."""
        vectors = [self.data.vectors[self.position(query["row"])] for query in queries if "row" in query]
        blobs = [data for _, data in images] + [base64.b64decode(query["data"]) for query in queries if "data" in query]
        if blobs:
            assert self.predictor is not None
            try:
                vectors += [self.predictor.embed(data) for data in blobs]
            except ImageError as error:
                return problem(error.http_status, error.code)  # type: ignore[return-value]
        found = self.matching(options.get("filter") or {})
        scores = self.data.vectors @ l2_normalize(np.mean(vectors, 0)[None])[0]
        asked = {query.get("row") for query in queries}
        order = [i for i in sorted(found, key=lambda i: -scores[i]) if self.data.rows[i]["row"] not in asked]
        least = -1 if options.get("min_score") is None else options["min_score"]
        neighbors: list[dict[str, Any]] = []
        for i in order:
            if scores[i] < least or len(neighbors) == start + top:
                break
            if options.get("group_duplicates"):
                leaders = [self.position(other["row"]) for other in neighbors]
                close = [k for k, j in enumerate(leaders) if self.data.vectors[i] @ self.data.vectors[j] >= DUPLICATES]
                if close:
                    neighbors[close[0]]["duplicates"].append(self.data.rows[i]["row"])
                    continue
            neighbors.append(self.data.rows[i] | dict(score=round(float(scores[i]), 6), duplicates=[]))
        timing = dict(search=1.2, total=1.9)
        return dict(neighbors=neighbors[start:], matching=len(found), rows=len(self.data.rows), timing_ms=timing)

    def answer_teach(self, images: object, yes: list[int], no: list[int], top: int) -> dict[str, object]:
        """POST /v1/teach: the direction from the mean of no to the mean of yes."""
        mean = {
            side: self.data.vectors[[self.position(r) for r in rows]].mean(0)
            for side, rows in (("yes", yes), ("no", no))
        }
        scores = 1 / (1 + np.exp(-8 * (self.data.vectors @ (mean["yes"] - mean["no"]))))
        ranked = [self.data.rows[i] | dict(score=round(float(scores[i]), 6)) for i in np.argsort(-scores)[:top]]
        return dict(ranked=ranked, train_ms=11.5, separable=True)

    def answer_heads(
        self, images: object, name: str = "", yes: object = None, no: object = None, replace: bool = False
    ) -> object:
        """GET and POST /v1/heads."""
        if name and name in self.heads and not replace:
            return problem(409, "exists")
        if name:
            self.heads[name] = (yes, no)
        return dict(heads=[dict(name=other) for other in self.heads])

    def picture(self, row: int) -> Response:
        """GET /v1/index/image/{row}."""
        data = self.data.pictures.get(row)
        return problem(404, "not_found") if data is None else Response(data, media_type="image/jpeg")

    def position(self, row: int) -> int:
        """Return the place of a row in the index."""
        return next(i for i, other in enumerate(self.data.rows) if other["row"] == row)

    def matching(self, filter: dict[str, Any]) -> list[int]:
        """Return the places of the rows that pass a filter."""
        polygon = filter.get("polygon")
        return [
            i
            for i, row in enumerate(self.data.rows)
            if (not filter.get("label") or row["label"] in filter["label"])
            and (filter.get("unknown") is None or row["unknown"] == filter["unknown"])
            and all(filter.get(f"min_{side}") is None or row[side] >= filter[f"min_{side}"] for side in SIDES)
            and all(filter.get(f"max_{side}") is None or row[side] <= filter[f"max_{side}"] for side in SIDES)
            and (not polygon or is_inside(self.data.points[i].tolist(), polygon))
        ]


SIDES = ("width", "height")


def is_inside(point: list[float], polygon: list[list[float]]) -> bool:
    """Return whether a point is inside a polygon, by counting the edges to its right."""
    x, y = point
    crossings = 0
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            crossings += 1
    return crossings % 2 == 1


def problem(status: int, code: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error as problem+json."""
    title = public_text(code) if code in CODES else code
    body = dict(type="about:blank", title=title, status=status, code=code, detail=title, error=title, request_id="test")
    return JSONResponse(body, status, headers, media_type="application/problem+json")
