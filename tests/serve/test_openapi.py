"""The description of the API: complete, and true by thousands of generated requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .servers import ANSWER_SECONDS, ServerProcess, exchange, request_bytes
from .test_security import HOST, call, new_app

# `TESSELLA_SCHEMATHESIS_EXAMPLES=1000 python -m pytest tests/serve/test_openapi.py` is the long run
EXAMPLES = int(os.environ.get("TESSELLA_SCHEMATHESIS_EXAMPLES", "100"))
CONFIG = f"""
hooks = "{Path(__file__).with_name("schemathesis_hooks.py")}"
request-timeout = {ANSWER_SECONDS}
[checks]
# these tests do not measure time, and other tests run beside them; the default is 10 seconds
max_response_time = {ANSWER_SECONDS}
[checks.positive_data_acceptance]
# random bytes are no image, and no schema can describe one
expected-statuses = ["2xx", 401, 403, 404, 409, 413, 415, 422, 429, 504]
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", 504]
[checks.negative_data_rejection]
# a deadline that has passed says nothing about the data
expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 504]
[[operations]]
include-path-regex = "^/v2/models/.*/infer$"
[operations.checks.positive_data_acceptance]
# no schema can say that the data of a tensor fits its shape
expected-statuses = ["2xx", 400, 401, 403, 404, 409, 413, 415, 422, 429, 504]
"""
TOKEN = "a-token-for-tests"


def description(**settings: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(call(new_app(**settings), "GET", "/openapi.json", [HOST]).body)
    return body


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("token", ["", TOKEN], ids=["open", "with a token"])
def test_requests_are_answered_as_described(tmp_path: Path, token: str) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    examples = EXAMPLES if not token else max(1, EXAMPLES // 4)  # the same routes; the checks of the token need few
    options = ["--max-examples", str(examples), "--seed", "1", "--no-color", "--checks", "all"]
    if token:
        options += ["--header", f"Authorization: Bearer {token}"]
    environment = {"TESSELLA_TOKEN": token} if token else {}
    with ServerProcess("--body-timeout", "5", environment=environment) as process:
        command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
        command += ["--config-file", str(config), "run", f"{process.url}/openapi.json", *options]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=3000)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert "Traceback" not in "".join(process.errors)
        assert exchange(process.port, request_bytes("GET", "/healthz")).status == 200


def test_every_operation_is_documented() -> None:
    for path, operations in description()["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            assert operation["description"], (method, path)
            assert operation["tags"], (method, path)
            assert {"400", "403", "408", "413", "415", "500"} <= operation["responses"].keys()
            assert "401" not in operation["responses"]


def test_inference_has_examples_and_every_kind_of_body() -> None:
    for name in ("classify", "embed", "predict"):
        operation = description()["paths"][f"/v1/{name}"]["post"]
        content = operation["requestBody"]["content"]
        assert {"multipart/form-data", "application/json", "image/jpeg", "application/octet-stream"} <= content.keys()
        assert content["application/json"]["example"]["images"]
        parameters = {parameter["name"] for parameter in operation["parameters"]}
        assert ("top" in parameters) == (name != "embed")
    assert "example" in description()["components"]["schemas"]["InferenceBody"]


def test_the_token_is_a_security_scheme() -> None:
    schema = json.loads(call(new_app(token=TOKEN), "GET", "/openapi.json", [HOST, (b"x-api-key", TOKEN.encode())]).body)
    assert schema["security"] == [{"bearer": []}, {"key": []}]
    assert schema["components"]["securitySchemes"].keys() == {"bearer", "key"}
    assert schema["paths"]["/healthz"]["get"]["security"] == []
    assert "401" in schema["paths"]["/v1/models"]["get"]["responses"]
    assert "security" not in description()


def test_nothing_is_loaded_from_other_hosts() -> None:
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert call(new_app(), "GET", path, [HOST]).status == 404
