"""Calls the server with Cohere's client."""

from __future__ import annotations

import asyncio

import cohere
from cohere.core.api_error import ApiError
from common import Job, data_uri, failure, read_job, write

TYPES = ["float", "base64", "binary", "ubinary"]


def errors_of(client: cohere.ClientV2, job: Job) -> dict[str, object]:
    def embed(model: str = job.model, images: list[str] = job.uris, **options: object) -> object:
        return client.embed(model=model, input_type="image", images=images, **options)

    wrong_token = cohere.ClientV2(api_key="wrong", base_url=job.url)
    broken = [job.uris[0], data_uri(job.files[0][:200])]
    calls = {
        "text": lambda: client.embed(model=job.model, input_type="search_query", texts=["a hat"]),
        "unknown model": lambda: embed(model="embed-v4.0"),
        "int8": lambda: embed(embedding_types=["int8"]),
        "dimensions": lambda: embed(output_dimension=7),
        "broken image": lambda: embed(images=broken),
        "no image": lambda: embed(images=[]),
        "token": lambda: wrong_token.embed(model=job.model, input_type="image", images=job.uris),
    }
    return {name: failure(call, ApiError) for name, call in calls.items()}


async def answer_async(job: Job) -> list[list[float]] | None:
    async with cohere.AsyncClientV2(api_key=job.token, base_url=job.url) as client:
        answer = await client.embed(model=job.model, input_type="image", images=job.uris)
    return answer.embeddings.float_


def main() -> None:
    job = read_job()
    client = cohere.ClientV2(api_key=job.token, base_url=job.url)
    answer = client.embed(model=job.model, input_type="image", images=job.uris, embedding_types=TYPES)
    inputs = [{"content": [{"type": "image_url", "image_url": {"url": uri}}]} for uri in job.uris]
    in_inputs = client.embed(model=job.model, input_type="search_document", inputs=inputs, embedding_types=["float"])
    write(
        {
            "id": answer.id,
            "response type": answer.response_type,
            "billed images": answer.meta.billed_units.images,
            "float": answer.embeddings.float_,
            "base64": answer.embeddings.base64,
            "binary": answer.embeddings.binary,
            "ubinary": answer.embeddings.ubinary,
            "int8": answer.embeddings.int8,
            "inputs": in_inputs.embeddings.float_,
            "async": asyncio.run(answer_async(job)),
            "errors": errors_of(client, job),
        }
    )


if __name__ == "__main__":
    main()
