"""Errors as HTTP answers: every code in every dialect, and texts that are fixed in the source."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from tessella import serve
from tessella.errors import CODES, ImageError, ServeError, UsageError
from tessella.serve.problems import DETAILS, RequestError, dialect_of, make_problem, problem_of, public_message
from tessella.serve.routes.index_common import detail_of

from .leaks import find_leaks

PATHS = {
    "problem": ["/v1/classify", "/", "/v1/models", "/v2x", "/v2embed", "/v1/embeddings/"],
    "open_inference": ["/v2", "/v2/", "/v2/health/live", "/v2/models/m/infer", "/v2/embed/"],
    "openai": ["/v1/embeddings", "/embeddings", "/embeddings_image", "/models"],
    "cohere": ["/v2/embed"],
}
SOURCES = Path(serve.__file__).parent
FROM_FIXED_LISTS = {  # by file: variables in sentences that a client cannot choose freely
    "embedding.py": ["code", "index", "reason"],  # the code of an error, the position of an image, a limit
    "explanations.py": ["count", "MAX_EXPLAINED"],  # numbers, also in the next ones
    "images.py": ["count", "limit"],
    "security.py": ["size", "limit"],
    "index_schemas.py": ["where"],  # keys that the server knows
    "index.py": ["name", "error.message"],  # a parameter that the server knows; the sentence of a RequestError
}


@pytest.mark.parametrize(("dialect", "path"), [(name, path) for name, paths in PATHS.items() for path in paths])
def test_the_path_determines_the_dialect(dialect: str, path: str) -> None:
    assert dialect_of(path) == dialect


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("code", CODES)
def test_every_code_has_an_answer_in_every_dialect(dialect: str, code: str) -> None:
    problem = make_problem(code, PATHS[dialect][0], "the-id")
    headers = dict(problem.headers)
    assert problem.status == CODES[code].http_status
    assert headers[b"content-length"] == str(len(problem.body)).encode()
    assert headers[b"x-tessella-error"] == code.encode()
    assert (b"retry-after" in headers) == (problem.status in (429, 503))
    assert (b"www-authenticate" in headers) == (problem.status == 401)
    body = json.loads(problem.body)
    text = CODES[code].text
    if dialect == "problem":
        assert headers[b"content-type"] == b"application/problem+json"
        assert set(body) == {"type", "title", "status", "detail", "code", "error", "request_id"}
        assert (body["title"], body["error"], body["code"]) == (text, text, code)
        assert (body["status"], body["request_id"]) == (problem.status, "the-id")
        return
    assert headers[b"content-type"] == b"application/json"
    if dialect == "open_inference":
        assert set(body) == {"error"}
        assert body["error"].startswith(text)
    elif dialect == "cohere":
        assert set(body) == {"id", "message"}
        assert body["id"] == "the-id"
        assert body["message"].startswith(text)
    else:
        assert set(body["error"]) == {"message", "type", "param", "code"}
        assert body["error"]["code"] == code
        assert body["error"]["message"].startswith(text)


@pytest.mark.parametrize("seconds", [0, 0.2, 1, 1.01, 7.5])
def test_retry_after_is_a_positive_number_of_whole_seconds(seconds: float) -> None:
    value = int(dict(make_problem("overloaded", "/", "id", retry_after=seconds).headers)[b"retry-after"])
    assert value >= max(1, seconds)
    assert value < seconds + 1 or value == 1


def test_messages_of_errors_stay_on_this_machine() -> None:
    secret = "/home/user/model.safetensors at 0x7f0011223344"
    for error in (UsageError("bad_argument", secret), ServeError("overloaded", secret, hint=secret)):
        assert b"home" not in problem_of(error, "/v1/classify", "id").body


def test_the_sentence_of_a_request_error_is_the_detail() -> None:
    body = json.loads(problem_of(RequestError("bad_request", "The body is empty."), "/v1/embed", "id").body)
    assert body["detail"] == "The body is empty."
    body = json.loads(problem_of(RequestError("bad_request", ""), "/v1/embed", "id").body)
    assert body["detail"] == CODES["bad_request"].text


@pytest.mark.parametrize(
    "message",
    [
        "the image has 25,000,000 bytes, the limit is 20,000,000",
        "the image has more than 20,000,000 bytes, which is the limit",
        "the images of the request have more than 67,108,864 bytes, which is the limit",
        "the image has 8,000 x 7,000 pixels (width x height), the limit is 50,000,000 pixels",
        "the image has 70,000 x 1 pixels (width x height), the longest side allowed is 65,535",
        "the image has 1 x 9,000 pixels (width x height) and would be resized to 224 x 2,016,000, "
        "the limit is 16,000,000 pixels",
        "the request has 65 images, the limit is 64",
    ],
)
def test_messages_about_a_limit_are_sent_with_their_numbers(message: str) -> None:
    error = ImageError("too_many_bytes", message)
    assert public_message(error) == message
    body = json.loads(problem_of(error, "/v1/classify", "id").body)
    assert body["detail"] == f"T{message[1:]}."
    assert body["title"] == CODES["too_many_bytes"].text


@pytest.mark.parametrize(
    "message",
    [
        "the image has 25,000,000 bytes, the limit is 20,000,000 (/home/user)",
        "/home/user: the image has 25,000,000 bytes, the limit is 20,000,000",
        "the image has 25,000,000 bytes, the limit is unknown",
        "the image has 25,000,000 bytes, the limit is 20,000,000\n",
        "there is not enough memory to decode the image",
    ],
)
def test_other_messages_are_not_sent(message: str) -> None:
    error = ImageError("too_many_bytes", message)
    assert public_message(error) == CODES["too_many_bytes"].text
    assert json.loads(problem_of(error, "/v1/classify", "id").body)["detail"] == CODES["too_many_bytes"].text


def test_every_sentence_for_clients_is_a_literal() -> None:
    """So that no value, path or message of a library can be part of it; one may be in a table of literals."""
    count = 0
    trees = {path: ast.parse(path.read_text()) for path in SOURCES.rglob("*.py")}
    own = {path: {name: value for node in tree.body for name, value in assigned(node)} for path, tree in trees.items()}
    names = {path: {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} for path, tree in trees.items()}
    imported = {name: value for values in own.values() for name, value in values.items()}
    for path, tree in trees.items():
        tables = imported | own[path] | {name: ast.Constant("0.") for name in FROM_FIXED_LISTS.get(path.name, ())}
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "RequestError"):
                continue
            sentence, count = node.args[1], count + 1
            if ast.unparse(sentence) in ("detail", "detail_of(error)") and "detail_of" in names[path]:
                continue  # tested below
            if isinstance(sentence, ast.Subscript):
                sentence = sentence.value
            if isinstance(sentence, ast.Name):
                sentence = tables[sentence.id]
            for value in sentence.values if isinstance(sentence, ast.Dict) else [sentence]:
                text = literal(value, tables)
                assert text is not None, f"{path.name}: {ast.unparse(node)}"
                assert not text or text.endswith("."), f"{path.name}: {text}"
    assert count > 20


def test_sentences_about_an_index_have_nothing_of_its_errors() -> None:
    for start in ("the index has no row", "the head gives every image", "the name of the head", "row ", "other"):
        sentence = detail_of(UsageError("bad_argument", f"{start} 7 in /home/user/secret"))
        assert bool(sentence) == (start != "other")
        assert "7" not in sentence
        assert "secret" not in sentence


def literal(node: ast.expr, constants: dict[str, ast.expr]) -> str | None:
    """Return the text of a literal, which may contain constants of the module; None if it is something else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int):
        return str(node.value)
    if isinstance(node, ast.Name | ast.Attribute) and (name := ast.unparse(node)) in constants:
        return literal(constants[name], {})
    if isinstance(node, ast.FormattedValue):
        return literal(node.value, constants)
    if isinstance(node, ast.JoinedStr | ast.BinOp):
        operands = node.values if isinstance(node, ast.JoinedStr) else [node.left, node.right]
        parts = [literal(part, constants) for part in operands]
        return None if None in parts else "".join(map(str, parts))
    return None


def assigned(node: ast.stmt) -> list[tuple[str, ast.expr]]:
    """Return the names that a statement of a module assigns, with their values."""
    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return [(ast.unparse(node.target), node.value)]
    if isinstance(node, ast.Assign):
        return [(ast.unparse(target), node.value) for target in node.targets]
    return []


def test_details_are_fixed_sentences_of_known_codes() -> None:
    assert set(DETAILS) <= set(CODES)
    for sentence in DETAILS.values():
        assert re.fullmatch(r"[A-Z].*\.", sentence) or sentence.endswith("request_id."), sentence
        assert find_leaks(sentence.encode()) == []


@pytest.mark.parametrize(
    "text",
    [
        "/usr/lib/python3.11/site-packages/PIL/Image.py",
        "<_io.BytesIO object at 0x7f3a5c1d2e30>",
        "Traceback (most recent call last):",
        'File "app.py", line 3, in main',
        "cannot identify image file",
        r"C:\\Users\\me",
        "KeyError('x')",
        "list index out of range",
        "torch.Size([1, 3])",
        "127.0.0.1:8000",
    ],
)
def test_leaks_are_found(text: str) -> None:
    assert find_leaks(json.dumps({"error": text}).encode())
