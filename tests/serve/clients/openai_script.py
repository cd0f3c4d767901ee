"""Calls the server with OpenAI's client."""

from __future__ import annotations

import asyncio
import base64

import openai
from common import Job, data_uri, failure, read_job, write
from openai import AsyncOpenAI, OpenAI

IMAGE = {"modality": "image"}


def vectors(answer: openai.types.CreateEmbeddingResponse) -> list[list[float]]:
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return [item.embedding for item in answer.data]


def errors_of(client: OpenAI, job: Job) -> dict[str, object]:
    create, uri = client.embeddings.create, job.uris[0]
    broken = [uri, data_uri(job.files[0][:200])]
    wrong_token = client.with_options(api_key="wrong")
    calls = {
        "text": lambda: create(model=job.model, input="a photo of a hat"),
        "tokens": lambda: create(model=job.model, input=[1, 2, 3]),
        "text modality": lambda: create(model=job.model, input=uri, extra_body={"modality": "text"}),
        "unknown model": lambda: create(model="text-embedding-3-small", input=uri, extra_body=IMAGE),
        "dimensions": lambda: create(model=job.model, input=uri, dimensions=7, extra_body=IMAGE),
        "broken image": lambda: create(model=job.model, input=broken, extra_body=IMAGE),
        "too many": lambda: create(model=job.model, input=[uri] * 9, extra_body=IMAGE),
        "no image": lambda: create(model=job.model, input=[], extra_body=IMAGE),
        "unknown id": lambda: client.models.retrieve("nothing"),
        "token": lambda: wrong_token.embeddings.create(model=job.model, input=uri, extra_body=IMAGE),
        "token of the list": lambda: list(wrong_token.models.list()),
    }
    return {name: failure(call, openai.APIStatusError) for name, call in calls.items()}


async def answer_async(job: Job) -> list[list[float]]:
    async with AsyncOpenAI(base_url=f"{job.url}/v1", api_key=job.token, max_retries=0) as client:
        return vectors(await client.embeddings.create(model=job.model, input=job.uris, extra_body=IMAGE))


def main() -> None:
    job = read_job()
    client = OpenAI(base_url=f"{job.url}/v1", api_key=job.token, max_retries=0)
    create = client.embeddings.create
    answer = create(model=job.model, input=job.uris, extra_body=IMAGE)
    raw = client.embeddings.with_raw_response.create(model=job.model, input=job.uris[0], extra_body=IMAGE)
    jina = [{"image": uri} for uri in job.uris[:-1]] + [{"image": base64.b64encode(job.files[-1]).decode()}]
    write(
        {
            "model": answer.model,
            "usage": [answer.usage.prompt_tokens, answer.usage.total_tokens],
            "asked for": raw.http_request.content.decode(),
            "fingerprint": raw.headers["x-tessella-fingerprint"],
            "base64": vectors(answer),
            "float": vectors(create(model=job.model, input=job.uris, encoding_format="float", extra_body=IMAGE)),
            "one": vectors(create(model=job.model, input=job.uris[0], extra_body=IMAGE)),
            "jina": vectors(create(model=job.model, input=jina)),
            "without modality": vectors(create(model=job.model, input=job.uris)),
            "async": asyncio.run(answer_async(job)),
            "models": [model.id for model in client.models.list()],
            "retrieved": client.models.retrieve(job.model).to_dict(),
            "errors": errors_of(client, job),
        }
    )


if __name__ == "__main__":
    main()
