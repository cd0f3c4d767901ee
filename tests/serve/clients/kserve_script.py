"""Calls the server with KServe's client."""

from __future__ import annotations

import asyncio
import base64

import httpx
import numpy as np
from common import Job, read_job, write
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig


def bytes_input(files: list[bytes]) -> InferInput:
    tensor = InferInput("image", [len(files)], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=np.object_))
    return tensor


class Caller:
    """Calls one model of a server."""

    def __init__(self, job: Job, client: InferenceRESTClient) -> None:
        self.job, self.client = job, client

    @property
    def headers(self) -> dict[str, str]:
        """The headers of one request: the client adds to the given dictionary."""
        return {"Authorization": f"Bearer {self.job.token}"}

    async def infer(self, model: str, tensor: InferInput, **options: object) -> object:
        request = InferRequest(model, [tensor], **options)
        return await self.client.infer(self.job.url, request, model_name=model, headers=self.headers)

    async def failure(self, model: str, tensor: InferInput, headers: dict[str, str] | None = None) -> list[object]:
        request = InferRequest(model, [tensor])
        try:
            await self.client.infer(self.job.url, request, model_name=model, headers=headers or self.headers)
        except httpx.HTTPStatusError as error:
            return [error.response.status_code, str(error)]
        return [0, "no error"]


async def call(job: Job) -> dict[str, object]:
    async with InferenceRESTClient(RESTConfig(protocol="v2", retries=0)) as client:
        caller = Caller(job, client)
        files = bytes_input(job.files)
        encoded = [base64.b64encode(data).decode() for data in job.files]
        answer = await caller.infer(job.model, files, request_id="a request")
        in_json = await caller.infer(job.model, InferInput("image", [len(encoded), 1], "BYTES", encoded))
        binary = await caller.infer(f"{job.model}.embedding", files, parameters={"binary_data_output": True})
        floats = np.full((2, 3, 32, 32), 0.25, np.float32)
        tensor = InferInput("image", [2, 3, 32, 32], "FP32")
        tensor.set_data_from_numpy(floats, binary_data=False)
        unit = await caller.infer(f"{job.model}.unit", tensor)
        broken = bytes_input([job.files[0], job.files[1][:200]])
        return {
            "live": await client.is_server_live(job.url),
            "ready": await client.is_server_ready(job.url),
            "model ready": [
                await client.is_model_ready(job.url, name, headers=caller.headers)
                for name in (job.model, f"{job.model}.embedding", "nothing")
            ],
            "id": answer.id,
            "model": answer.model_name,
            "logits": answer.outputs[0].as_numpy().tolist(),
            "logits of JSON": in_json.outputs[0].as_numpy().tolist(),
            "embedding": binary.outputs[0].as_numpy().tolist(),
            "logits of floats": unit.outputs[0].as_numpy().tolist(),
            "errors": {
                "unknown model": await caller.failure("nothing", files),
                "broken image": await caller.failure(job.model, broken),
                "scaling": await caller.failure(job.model, tensor),
                "token": await caller.failure(job.model, files, {"Authorization": "Bearer wrong"}),
            },
        }


if __name__ == "__main__":
    write(asyncio.run(call(read_job())))
