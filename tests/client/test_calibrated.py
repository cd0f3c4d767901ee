"""Both clients and calibrated models: what they read, what they refuse, and that a real server gives the same."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import tessella
from tessella import AsyncClient, Client
from tessella.client import ServedCalibration
from tessella.client.settings import ClientBase
from tessella.errors import ServeError
from tessella.results import Assessment, Prediction, Record
from tessella.weights.fetch import CALIBRATION
from tests.serve.calibrations import model_folder
from tests.serve.servers import ServerProcess

from .fake_server import MODEL, FakeServer, Reply, Request, json_reply, results

PHOTOS = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.jpg"))
KINDS = pytest.mark.parametrize("kind", [Client, AsyncClient])
FACTS: dict[str, Any] = dict(coverage=0.9, per_class=True, false_alarms=0.05, temperature=1.5)
SET = [dict(index=3, label="cat", probability=0.5), dict(index=5, label="dog", probability=0.25, synset="n02084071")]
ASSESSMENT = dict(prediction_set=SET, set_size=2, unknown=False, familiarity=0.25)
READ = Assessment((Prediction(3, "cat", 0.5), Prediction(5, "dog", 0.25, "n02084071")), False, 0.25)


def ask(
    kind: type[ClientBase], url: str, images: Any, settings: Any = None, **options: Any
) -> tuple[list[Record], ServedCalibration | None]:
    """Return the records of images, and what the client says about their calibration afterwards."""
    if kind is Client:
        with Client(url, **(settings or {})) as client:
            return list(client.records(images, **options)), client.calibration

    async def run() -> tuple[list[Record], ServedCalibration | None]:
        async with AsyncClient(url, **(settings or {})) as client:
            return [record async for record in client.records(images, **options)], client.calibration

    return asyncio.run(run())


def server_of(facts: object = FACTS, later: object = None, **changes: Any) -> Callable[[Request], Reply]:
    """Return a server whose results are assessed. later: the facts for the image of position 5 and those after it."""

    def behave(request: Request) -> Reply:
        rows = results(request)
        for row in rows:
            if row["status"] == "ok" and request.path != "/v1/embed":
                row |= {name: value for name, value in (ASSESSMENT | changes).items() if value is not ...}
        is_late = later is not None and int(request.files[0][0]) >= 5
        return json_reply({**MODEL, "calibration": later if is_late else facts, "results": rows, "later": "unknown"})

    return behave


@KINDS
def test_an_assessment_is_read(kind: type[ClientBase]) -> None:
    with FakeServer(server_of()) as server:
        records, calibration = ask(kind, server.url, [b"image", b"bad"], embed=False)
    assert [record.assessment for record in records] == [READ, None]
    assert calibration == ServedCalibration(**FACTS)


@KINDS
def test_a_long_set_is_read_with_its_size(kind: type[ClientBase]) -> None:
    with FakeServer(server_of(set_size=340, unknown=True)) as server:
        ((record,), _) = ask(kind, server.url, [b"image"])
    assert record.assessment == Assessment(READ.prediction_set, True, 0.25, unlisted=338)
    assert record.assessment.set_size == 340


@KINDS
def test_a_server_that_knows_no_calibrations(kind: type[ClientBase]) -> None:
    with FakeServer() as server:
        ((record,), calibration) = ask(kind, server.url, [b"image"])
    assert (record.status, record.assessment, calibration) == ("ok", None, None)


@KINDS
def test_a_model_that_is_not_calibrated(kind: type[ClientBase]) -> None:
    nothing = dict.fromkeys(ASSESSMENT, ...)
    with FakeServer(server_of(facts=None, **nothing)) as server:
        ((record,), calibration) = ask(kind, server.url, [b"image"])
    assert (record.status, record.assessment, calibration) == ("ok", None, None)


@KINDS
def test_nobody_asked_for_classes(kind: type[ClientBase]) -> None:
    with FakeServer(server_of(facts=None)) as server:
        ((record,), _) = ask(kind, server.url, [b"image"], top=0)
    assert record.assessment is None
    assert server.requests[-1].path == "/v1/embed"
    with FakeServer(server_of()) as server:
        ((record,), _) = ask(kind, server.url, [b"image"], top=0, embed=False)
    assert (record.top, record.assessment) == ((), None)


@KINDS
@pytest.mark.parametrize(
    ("facts", "changes"),
    [
        (None, {}),  # an assessment by nothing
        (FACTS, dict(unknown=...)),
        (FACTS, dict(prediction_set=..., set_size=...)),
        (FACTS, dict(prediction_set=[])),
        (FACTS, dict(set_size=1)),
        (FACTS, dict(set_size=...)),
        (FACTS, dict(unknown="no")),
        (FACTS, dict(familiarity=None)),
        (FACTS | {"coverage": "0.9"}, {}),
        ({"coverage": 0.9}, {}),
    ],
)
def test_an_assessment_that_does_not_fit_is_never_a_result(kind: type[ClientBase], facts: Any, changes: Any) -> None:
    with FakeServer(server_of(facts, **changes)) as server, pytest.raises(ServeError) as caught:
        ask(kind, server.url, [b"image"], embed=False)
    assert caught.value.code == "server_failed"


@KINDS
def test_a_calibration_that_changes_during_a_call(kind: type[ClientBase]) -> None:
    """The server was restarted with another one: probabilities that mean different things are not mixed."""
    images = [b"image %d" % number for number in range(10)]
    with FakeServer(server_of(later=FACTS | {"temperature": 1.25})) as server:
        with pytest.raises(ServeError) as caught:
            ask(kind, server.url, images, settings=dict(max_images=1, concurrency=1), embed=False)
        assert "changed the calibration of fake during the call" in caught.value.message
        assert len(ask(kind, server.url, images[:5], settings=dict(max_images=1), embed=False)[0]) == 5


# --- a real server ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model twice, with a calibration and without one."""
    parent = tmp_path_factory.mktemp("models")
    calibrated = model_folder(parent / "calibrated", [path.read_bytes() for path in PHOTOS])
    plain = Path(shutil.copytree(calibrated, parent / "plain"))
    (plain / CALIBRATION).unlink()
    return dict(calibrated=calibrated, plain=plain)


@pytest.fixture(scope="module")
def server(folders: dict[str, Path]) -> Iterator[ServerProcess]:
    options = [part for folder in folders.values() for part in ("-m", f"local-dir:{folder}")]
    with ServerProcess(*options) as process:
        yield process


@KINDS
@pytest.mark.parametrize("embed", [False, True])
def test_records_are_those_of_a_predictor(
    server: ServerProcess, folders: dict[str, Path], kind: type[ClientBase], embed: bool
) -> None:
    predictor = tessella.load(f"local-dir:{folders['calibrated']}")
    expected = list(predictor.records(PHOTOS, embed=embed))
    records, facts = ask(kind, server.url, PHOTOS, embed=embed)
    for record, known in zip(records, expected, strict=True):
        assert (record.key, record.top, record.assessment) == (known.key, known.top, known.assessment)
        assert record.assessment is not None
    assert {record.assessment.unknown for record in records if record.assessment} == {True, False}
    calibration = predictor.calibration
    assert calibration is not None
    assert facts == ServedCalibration(0.9, False, 0.05, calibration.temperature)


def test_the_same_weights_with_and_without_a_calibration_do_not_mix(
    server: ServerProcess, folders: dict[str, Path]
) -> None:
    """Both models have the same fingerprint, and their requests alternate on one server."""
    expected = {name: list(tessella.load(f"local-dir:{folder}").records(PHOTOS)) for name, folder in folders.items()}
    assert expected["plain"][0].top != expected["calibrated"][0].top
    clients = {name: Client(server.url, model=name, max_images=1) for name in folders}
    streams = {name: client.records(PHOTOS * 10) for name, client in clients.items()}
    for position in range(10 * len(PHOTOS)):
        for name, stream in streams.items():
            record, known = next(stream), expected[name][position % len(PHOTOS)]
            assert (record.top, record.assessment) == (known.top, known.assessment)
            assert (record.assessment is None) == (name == "plain")
    for client in clients.values():
        client.close()
    with Client(server.url) as client:
        models = {model.name: model for model in client.models()}
        client.classify(PHOTOS)
        assert models["calibrated"].calibration == client.calibration is not None
    assert models["plain"].calibration is None
    assert models["calibrated"].fingerprint == models["plain"].fingerprint


def test_predictions_are_calibrated(server: ServerProcess, folders: dict[str, Path]) -> None:
    predictor = tessella.load(f"local-dir:{folders['calibrated']}")
    with Client(server.url) as client:
        assert client.classify(PHOTOS) == predictor.classify(PHOTOS)
        assert client.predict(PHOTOS).probabilities.tolist() == predictor.predict(PHOTOS).probabilities.tolist()
        assert client.calibration is not None
        client.embed(PHOTOS)
        assert client.calibration is None


def test_an_explanation_has_the_probability_of_a_classification(server: ServerProcess) -> None:
    for model in ("calibrated", "plain"):
        with Client(server.url, model=model) as client:
            found = client.explain(PHOTOS[0])
            for explained, best in zip(found.top, client.classify(PHOTOS[0]), strict=True):
                assert explained.index == best.index
                assert explained.probability == pytest.approx(best.probability, abs=1e-4)
            assert found.target == found.top[0]


# --- the command line -------------------------------------------------------------------------------------------------


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tessella", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("output", [[], ["--json"], ["--csv"]])
def test_the_command_prints_what_the_local_one_prints(
    server: ServerProcess, folders: dict[str, Path], output: list[str]
) -> None:
    here = run("classify", "-m", f"local-dir:{folders['calibrated']}", *PHOTOS, *output)
    there = run("classify", "-m", "calibrated", "--server", server.url, *PHOTOS, *output)
    assert (there.returncode, there.stdout, there.stderr) == (here.returncode, here.stdout, here.stderr)
    if output == ["--json"]:
        rows = [json.loads(line) for line in there.stdout.splitlines()]
        assert {row["unknown"] for row in rows} == {True, False}


def test_a_server_can_be_started_without_calibrations(folders: dict[str, Path]) -> None:
    model = f"local-dir:{folders['calibrated']}"
    with ServerProcess("-m", model, "--no-calibration") as process, Client(process.url) as client:
        assert client.classify(PHOTOS) == tessella.load(model, calibration=None).classify(PHOTOS)
        assert client.calibration is None
        assert [facts.calibration for facts in client.models()] == [None]
