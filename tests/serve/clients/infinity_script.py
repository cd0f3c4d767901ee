"""Calls the server with Infinity's client, whose paths have no version."""

from __future__ import annotations

import base64

from common import Job, data_uri, read_job, write
from infinity_client import AuthenticatedClient, Client
from infinity_client.api.default import embeddings, embeddings_image, health, models
from infinity_client.models import (
    ImageEmbeddingInput,
    OpenAIEmbeddingInputImage,
    OpenAIEmbeddingInputText,
    OpenAIEmbeddingResult,
)


def vectors(answer: OpenAIEmbeddingResult) -> list[object]:
    return [item.embedding for item in answer.data]


def errors_of(client: AuthenticatedClient, job: Job) -> dict[str, object]:
    broken = [job.uris[0], data_uri(job.files[0][:200])]
    answers = {
        "text": embeddings.sync_detailed(client=client, body=OpenAIEmbeddingInputText(input_="a hat", model=job.model)),
        "unknown model": embeddings_image.sync_detailed(
            client=client, body=ImageEmbeddingInput(input_=job.uris, model="nothing")
        ),
        "broken image": embeddings_image.sync_detailed(
            client=client, body=ImageEmbeddingInput(input_=broken, model=job.model)
        ),
        "token": embeddings_image.sync_detailed(
            client=Client(base_url=job.url), body=ImageEmbeddingInput(input_=job.uris, model=job.model)
        ),
    }
    return {name: [int(answer.status_code), answer.content.decode()] for name, answer in answers.items()}


def main() -> None:
    job = read_job()
    client = AuthenticatedClient(base_url=job.url, token=job.token, raise_on_unexpected_status=False)
    answer = embeddings_image.sync(client=client, body=ImageEmbeddingInput(input_=job.uris, model=job.model))
    encoded = [base64.b64encode(data).decode() for data in job.files]
    in_base64 = ImageEmbeddingInput(input_=encoded, model=job.model)
    listed = models.sync(client=client)
    write(
        {
            "model": answer.model,
            "usage": [answer.usage.prompt_tokens, answer.usage.total_tokens],
            "image": vectors(answer),
            "base64": vectors(embeddings_image.sync(client=client, body=in_base64)),
            "modality": vectors(
                embeddings.sync(client=client, body=OpenAIEmbeddingInputImage(input_=job.uris, model=job.model))
            ),
            "default model": embeddings_image.sync(client=client, body=ImageEmbeddingInput(input_=job.uris)).model,
            "models": [model.id for model in listed.data],
            "health": health.sync(client=Client(base_url=job.url)).to_dict(),
            "errors": errors_of(client, job),
        }
    )


if __name__ == "__main__":
    main()
