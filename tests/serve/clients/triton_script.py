"""Calls the server with Triton's client, also in the way of NVIDIA's image client."""

from __future__ import annotations

import asyncio
import io

import numpy as np
from common import Job, failure, read_job, write
from PIL import Image
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, aio
from tritonclient.http import InferenceServerClientPlugin as Plugin
from tritonclient.utils import InferenceServerException


class BearerToken(Plugin):
    """Triton's client has no argument for a token: a plugin may add headers to every request."""

    def __init__(self, token: str) -> None:
        self._header = f"Bearer {token}"

    def __call__(self, request: object) -> None:
        request.headers["Authorization"] = self._header


def bytes_input(files: list[bytes], *, binary: bool = True) -> InferInput:
    tensor = InferInput("image", [len(files)], "BYTES")
    return tensor.set_data_from_numpy(np.array(files, dtype=np.object_), binary_data=binary)


def array_input(array: np.ndarray, datatype: str, *, binary: bool = True) -> InferInput:
    return InferInput("image", list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


def resized(job: Job, height: int, width: int) -> np.ndarray:
    """Prepare images as NVIDIA's image client does: (N,H,W,3) uint8."""
    images = [Image.open(io.BytesIO(data)).convert("RGB").resize((width, height), 2) for data in job.files]
    return np.stack([np.array(image) for image in images])


def classes(client: InferenceServerClient, model: str, tensor: InferInput, output: str = "logits") -> object:
    """Ask for the three best classes, as the image client does, and return them as it prints them."""
    answer = client.infer(model, [tensor], outputs=[InferRequestedOutput(output, class_count=3)])
    return [[text.decode() for text in row] for row in answer.as_numpy(output)]


def scalings(client: InferenceServerClient, job: Job, size: tuple[int, int]) -> dict[str, object]:
    pixels = resized(job, *size)
    typed = pixels.astype(np.float32)
    scaled = {
        "": typed,
        ".inception": (typed / 127.5) - 1,
        ".vgg": typed - np.asarray((123, 117, 104), dtype=np.float32),
        ".unit": typed / 255,
    }
    planes = {suffix: np.ascontiguousarray(values.transpose(0, 3, 1, 2)) for suffix, values in scaled.items()}
    results = {suffix: classes(client, job.model + suffix, array_input(x, "FP32")) for suffix, x in planes.items()}
    embedded = client.infer(f"{job.model}.embedding.vgg", [array_input(planes[".vgg"], "FP32")])
    return {
        **results,
        "pixels": pixels.tolist(),
        "uint8": classes(client, job.model, array_input(pixels, "UINT8")),
        "uint8 in JSON": classes(client, job.model, array_input(pixels, "UINT8", binary=False)),
        "FP32 in JSON": classes(client, job.model, array_input(planes[""], "FP32", binary=False)),
        "embedding": embedded.as_numpy("embedding").tolist(),
        "wrong scaling": failure(
            lambda: client.infer(job.model, [array_input(planes[".inception"], "FP32")]), InferenceServerException
        ),
    }


async def answer_async(job: Job) -> list[list[float]]:
    async with aio.InferenceServerClient(job.url.removeprefix("http://")) as client:
        headers = {"Authorization": f"Bearer {job.token}"}
        answer = await client.infer(job.model, [bytes_input(job.files)], headers=headers)
    return answer.as_numpy("logits").tolist()


def errors_of(client: InferenceServerClient, job: Job) -> dict[str, object]:
    files = bytes_input(job.files)
    zeros = np.zeros((1, 3, 8, 8), np.float32)
    other_name = InferInput("input", [1], "BYTES").set_data_from_numpy(np.array([b"x"], dtype=np.object_))
    without_token = InferenceServerClient(job.url.removeprefix("http://"))
    calls = {
        "unknown model": lambda: client.infer("nothing", [files]),
        "unknown version": lambda: client.infer(job.model, [files], model_version="2"),
        "unknown metadata": lambda: client.get_model_metadata("nothing"),
        "input name": lambda: client.infer(job.model, [other_name]),
        "two inputs": lambda: client.infer(job.model, [files, files]),
        "output name": lambda: client.infer(job.model, [files], outputs=[InferRequestedOutput("embedding")]),
        "shape": lambda: client.infer(job.model, [array_input(zeros, "FP32")]),
        "datatype": lambda: client.infer(job.model, [array_input(zeros.astype(np.float64), "FP64")]),
        "no images": lambda: client.infer(job.model, [array_input(zeros[:0], "FP32")]),
        "too many": lambda: client.infer(job.model, [bytes_input(job.files[:1] * 9)]),
        "broken image": lambda: client.infer(job.model, [bytes_input([job.files[0], job.files[1][:200]])]),
        "not an image": lambda: client.infer(job.model, [bytes_input([b"no image"])]),
        "compressed": lambda: client.infer(job.model, [files], request_compression_algorithm="gzip"),
        "timeout": lambda: client.infer(job.model, [files], timeout=1),
        "load": lambda: client.load_model(job.model),
        "token": lambda: without_token.infer(job.model, [files]),
        "token of the metadata": lambda: without_token.get_model_metadata(job.model),
    }
    return {name: failure(call, InferenceServerException) for name, call in calls.items()}


def main() -> None:
    job = read_job()
    client = InferenceServerClient(job.url.removeprefix("http://"), concurrency=4)
    client.register_plugin(BearerToken(job.token))
    metadata, config = client.get_model_metadata(job.model), client.get_model_config(job.model)
    height, width = metadata["inputs"][0]["shape"][2:]
    files = bytes_input(job.files)
    answer = client.infer(job.model, [files], request_id="a request")
    in_json = client.infer(job.model, [files], outputs=[InferRequestedOutput("logits", binary_data=False)])
    embedded = client.infer(f"{job.model}.embedding", [files], model_version="1")
    pending = [client.async_infer(job.model, [files], request_id=str(number)) for number in range(4)]
    answers = [request.get_result() for request in pending]
    write(
        {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model ready": [client.is_model_ready(name) for name in (job.model, f"{job.model}.embedding", "nothing")],
            "server": client.get_server_metadata(),
            "index": client.get_model_repository_index(),
            "metadata": metadata,
            "config": config,
            "metadata of the embedding": client.get_model_metadata(f"{job.model}.embedding", "1"),
            "response": answer.get_response(),
            "logits": answer.as_numpy("logits").tolist(),
            "response in JSON": in_json.get_response(),
            "logits in JSON": in_json.as_numpy("logits").tolist(),
            "embedding": embedded.as_numpy("embedding").tolist(),
            "ids": [item.get_response()["id"] for item in answers],
            "async": [item.as_numpy("logits").tolist() for item in answers],
            "asyncio": asyncio.run(answer_async(job)),
            "compressed": client.infer(job.model, [files], response_compression_algorithm="gzip")
            .as_numpy("logits")
            .tolist(),
            "classes": classes(client, job.model, files),
            "values of the embedding": classes(client, f"{job.model}.embedding", files, "embedding"),
            "scalings": scalings(client, job, (height, width)),
            "errors": errors_of(client, job),
        }
    )


if __name__ == "__main__":
    main()
