"""Requests with forms: HTTP methods, content types and form fields."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import alexnet
from alexnet.run import RunFolder

pytest.importorskip("uvicorn")

from alexnet.server.app import SECURITY_HEADERS, listen, make_server
from alexnet.server.limits import Limits
from asking import Client, Gated, multipart, photo, until

GETS = ("/", "/static/page.js", "/model", "/healthz", "/openapi.json")


@pytest.fixture(scope="module")
def client(trained: alexnet.Run) -> Iterator[Client]:
    """A server of `trained`, in this process."""
    engine, listening = Gated(trained), listen("127.0.0.1", 0)
    server = make_server(engine, RunFolder(trained.path), trained.config, Limits(), listening, None)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    until(lambda: server.started)
    yield Client(listening.getsockname()[1], engine)
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("path", [*GETS, "/nothing", "/static/nothing.js", "/predict"])
def test_head_is_answered_as_get_without_a_body(client: Client, path: str) -> None:
    got, headed = client.ask("GET", path), client.ask("HEAD", path)
    assert headed.status == got.status == (200 if path in GETS else 405 if path == "/predict" else 404)
    assert headed.body == b""
    for reply in (got, headed):
        reply.headers.pop("date")
    assert {**headed.headers, "content-length": ""} == {**got.headers, "content-length": ""}
    if got.status != 405:  # its message names the method
        assert headed.headers["content-length"] == str(len(got.body))


def test_options_and_405_name_the_allowed_methods(client: Client) -> None:
    for path in (*GETS, "/predict", "/preview", "/explain"):
        allowed = "GET, HEAD, OPTIONS" if path in GETS else "POST, OPTIONS"
        said = client.ask("OPTIONS", path, headers={"Sec-Fetch-Site": "cross-site"})
        assert (said.status, said.body, said.headers["allow"]) == (204, b"", allowed)
        assert said.headers["content-security-policy"] == SECURITY_HEADERS["content-security-policy"]
        assert "access-control-allow-origin" not in said.headers, "pages of other sites may not ask"
        for method in ("PUT", "DELETE", "PATCH", "POST" if path in GETS else "GET"):
            wrong = client.ask(method, path)
            assert (wrong.status, wrong.headers["allow"]) == (405, allowed)
            assert wrong.json == {"error": f"Method Not Allowed: {method} {path}"}
    assert client.ask("OPTIONS", "/nothing").status == 404


BASE64 = json.dumps({"image": "aGVsbG8="}).encode()


@pytest.mark.parametrize("path", ["/predict", "/preview", "/explain"])
@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("application/json", BASE64, "content type application/json"),
        ("application/json; charset=utf-8", BASE64, "content type application/json"),
        ("application/x-www-form-urlencoded", b"@photo.jpg", "content type application/x-www-form-urlencoded"),
        ("application/x-www-form-urlencoded", photo(), "content type application/x-www-form-urlencoded"),
        ("text/plain", b"photo.jpg", "content type text/plain"),
        ("text/html", photo(), "content type text/html"),
        ("multipart/mixed; boundary=XX", multipart([("a", b"a")]), "content type multipart/mixed"),
        ("image", photo(), "content type image"),
        ("\xe9\x1b[2J", photo(), "content type é\\x1b[2j"),
        ("", BASE64, "text"),
        ("", b"aGVsbG8=\n" * 1000, "text"),
        ("application/octet-stream", BASE64, "text"),
    ],
)
def test_a_content_type_that_is_not_read_is_415_with_the_right_curl(
    client: Client, path: str, kind: str, body: bytes, reason: str
) -> None:
    reply = client.predict(body, path, **({"Content_Type": kind} if kind else {}))
    curl = f"curl -F images=@photo.jpg http://127.0.0.1:{client.port}{path}"
    assert (reply.status, reply.json) == (415, {"error": f"{reason} is not supported: send the image file itself with {curl}"})


def test_a_request_without_an_image_is_400_with_the_right_curl(client: Client) -> None:
    curl = f"curl -F images=@photo.jpg http://127.0.0.1:{client.port}/predict"
    assert client.predict(b"").json == {"error": f"no image in the request: send the image file itself with {curl}"}


@pytest.mark.parametrize("kind", ["", "image/png", "IMAGE/PNG; q=1", "image/x-anything", "application/octet-stream"])
def test_a_raw_image_is_read_as_an_image_or_without_a_content_type(client: Client, kind: str) -> None:
    reply = client.predict(photo(), **({"Content_Type": kind} if kind else {}))
    assert reply.status == 200
    assert reply.json[0]["predictions"]


def test_form_accepts_common_field_names(client: Client) -> None:
    for field in ("images", "image", "files", "file"):
        reply = client.form([("a.png", photo()), ("b.png", photo(1))], field=field)
        assert [answer["image"] for answer in reply.json] == ["a.png", "b.png"]
        assert "error" not in reply.json[0]
    mixed = multipart([("a.png", photo())], "file")[:-8] + b"\r\n" + multipart([("b.png", photo())], "images")
    assert len(client.predict(mixed, Content_Type="multipart/form-data; boundary=XX").json) == 2
    refused = client.form([("a.png", photo())], field="photo")
    assert (refused.status, refused.json["error"][:39]) == (400, "the field 'photo' is not an image file:")


def test_openapi_names_the_fields_and_content_types_that_are_read(client: Client) -> None:
    document: dict[str, Any] = client.ask("GET", "/openapi.json").json
    for path in ("/predict", "/preview", "/explain"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"multipart/form-data", "image/*", "application/octet-stream"}
        form = content["multipart/form-data"]["schema"]
        assert list(form["properties"]) == ["images", "image", "files", "file"]
        assert (form["minProperties"], form["additionalProperties"]) == (1, False)
        assert "415" in document["paths"][path]["post"]["responses"]
