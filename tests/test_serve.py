"""The server: its answers equal those in Python, and no request makes it slow, wrong or large in memory."""

from __future__ import annotations

import base64
import gc
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

import alexnet
from alexnet.errors import AlexNetError
from alexnet.run import RunFolder

pytest.importorskip("uvicorn")
from fastapi.openapi.models import OpenAPI

from alexnet.page.describe import WEB
from alexnet.server.app import SECURITY_HEADERS, listen, make_server
from alexnet.server.limits import Limits
from alexnet.server.middleware import JsonFormatter
from asking import Client, Gated, multipart, photo, until


@pytest.fixture(scope="module")
def start(trained: alexnet.Run) -> Callable[..., Any]:
    """Return a context in which a server of `trained` runs in this process."""

    @contextmanager
    def running(key: str | None = None, **limits: Any) -> Iterator[Client]:
        said = Limits(**limits)
        engine, listening = Gated(trained), listen("127.0.0.1", 0)
        server = make_server(engine, RunFolder(trained.path), trained.config, said, listening, key)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            until(lambda: server.started)
            engine.sizes.clear()
            yield Client(listening.getsockname()[1], engine)
        finally:
            engine.open.set()
            server.should_exit = True
            thread.join()

    return running


@pytest.fixture(scope="module")
def client(start: Callable[..., Any]) -> Iterator[Client]:
    with start() as found:
        yield found


# Answers


def test_answers_are_those_of_predict(client: Client, trained: alexnet.Run, photos: Path) -> None:
    files = sorted(photos.rglob("*.png"))[::8]
    expected = trained.predict(files, top=2)
    reply = client.form([(file.name, file.read_bytes()) for file in files], "/predict?top=2")
    raw = [
        client.predict(file.read_bytes(), Content_Type=kind).json
        for file, kind in zip(files[:2], ("image/png", "application/octet-stream"), strict=True)
    ]
    assert [answer["image"] for answer in reply.json] == [file.name for file in files]
    for answers in (reply.json, [answer for (answer,) in raw]):
        for answer, wanted in zip(answers, expected, strict=False):
            assert [p["label"] for p in answer["predictions"]] == [p["label"] for p in wanted["predictions"]]
            np.testing.assert_allclose(*([p["probability"] for p in a["predictions"]] for a in (answer, wanted)), atol=5e-3)


def test_a_bad_image_is_answered_among_good_ones(client: Client) -> None:
    files = [
        ("a.png", photo()),
        ("b.txt", b"no image"),
        ("c.png", b""),
        ("d.png", photo()[:200]),
        ("e.jpg", photo(1, format="jpeg")),
    ]
    reply = client.form(files)
    assert reply.status == 200
    assert ["error" in answer for answer in reply.json] == [False, True, True, True, False]
    assert reply.json[1] == {"image": "b.txt", "error": "not an image, or of an unknown format"}


def test_an_explanation_has_pictures(client: Client, trained: alexnet.Run) -> None:
    reply = client.predict(photo(), "/explain")
    assert reply.status == 200
    found = reply.json

    def opened(uri: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))))

    assert found["predictions"][0]["label"] == "across"
    side = trained.config.preprocessing.input
    assert opened(found["pixels"]).mode == "RGB"
    assert {name: (opened(uri).mode, opened(uri).size) for name, uri in found["heat"].items()} == dict.fromkeys(
        ("grad_cam", "occlusion", "integrated_gradients"), ("RGBA", (side, side))
    )
    for maps in found["maps"].values():
        channels, height, width = maps["shape"]
        assert len(maps["pictures"]) == min(24, channels)
        assert opened(maps["pictures"][0]).size == (width, height)
    assert client.form([("a", photo()), ("b", photo())], "/explain").status == 413
    assert client.predict(b"\0no image", "/explain").json == {"error": "image: not an image, or of an unknown format"}


def test_a_preview_is_a_jpeg_that_browsers_show(client: Client) -> None:
    picture = Image.linear_gradient("L").resize((2000, 500)).convert("RGB")
    data, file = Image.Exif(), io.BytesIO()
    data[0x0112] = 6
    picture.save(file, "TIFF", exif=data)
    reply = client.predict(file.getvalue(), "/preview")
    assert reply.status == 200
    shown = Image.open(io.BytesIO(base64.b64decode(reply.json["preview"].removeprefix("data:image/jpeg;base64,"))))
    assert (shown.format, shown.size) == ("JPEG", (400, 1600))
    upright = np.asarray(picture.transpose(Image.Transpose.ROTATE_270).resize((400, 1600)), np.float64)
    assert np.abs(np.asarray(shown) - upright).max() < 8
    assert client.form([("a", photo()), ("b", photo())], "/preview").status == 413
    refused = client.predict(b"\0no image", "/preview")
    assert (refused.status, refused.json) == (422, {"error": "image: not an image, or of an unknown format"})


def test_the_run_is_described(client: Client, trained: alexnet.Run) -> None:
    found = client.ask("GET", "/model").json
    assert found["labels"] == list(trained.labels)
    assert (found["fit"], found["zoom"]) == (trained.config.preprocessing.fit, [1, 1])
    assert found["accuracy"]["top1"] == trained.summary["test"]["top1"]
    assert (found["run"], found["key"], found["limits"]["files"]) == (trained.path.name, False, 64)
    assert client.ask("GET", "/healthz").json == {"status": "ok"}


def test_openapi_is_valid_and_there_are_no_pages_that_load_from_elsewhere(client: Client) -> None:
    document = client.ask("GET", "/openapi.json").json
    OpenAPI.model_validate(document)
    assert {"/predict", "/preview", "/explain", "/model", "/healthz"} == set(document["paths"])
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in document["components"]["schemas"]
    assert [client.ask("GET", path).status for path in ("/docs", "/redoc")] == [404, 404]


def test_static_files_have_their_types_and_nothing_outside_their_folder_is_served(client: Client) -> None:
    index = client.ask("GET", "/")
    assert (index.body, index.headers["content-type"]) == ((WEB / "index.html").read_bytes(), "text/html; charset=utf-8")
    script = client.ask("GET", "/static/page.js")
    assert (script.body, script.headers["content-type"]) == ((WEB / "page.js").read_bytes(), "text/javascript; charset=utf-8")
    assert client.ask("GET", "/static/style.css").headers["content-type"] == "text/css; charset=utf-8"
    above = WEB.parent / "describe.py"
    outside = ("../describe.py", "..%2fdescribe.py", "%2e%2e/describe.py", f"/{above}", str(above))
    for path in (*outside, "page.js%00", "..", "", "a" * 9000):
        assert client.ask("GET", f"/static/{path}").status == 404, path


# Batches


def test_requests_at_the_same_time_share_the_network(client: Client) -> None:
    client.engine.sizes.clear()
    client.engine.open.clear()
    client.engine.computing = 0
    with ThreadPoolExecutor(17) as pool:
        first = pool.submit(client.predict, photo())
        until(lambda: client.engine._queue.empty() and client.engine.computing == 1)
        others = [pool.submit(client.predict, photo(1, i)) for i in range(16)]
        until(lambda: client.engine._queue.qsize() == 16)
        client.engine.open.set()
        assert {reply.result().status for reply in (first, *others)} == {200}
    assert client.engine.sizes == [1, 16]


# Limits


def chunks(size: int, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(size)


def test_a_body_too_large_is_refused_with_and_without_its_length(start: Callable[..., Any]) -> None:
    with start(bytes=100_000, all_bytes=100_000, idle_seconds=1) as client:
        replies = [
            client.predict(bytes(100_001)),
            client.ask("POST", "/predict", chunks(10_000, 30), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}),
        ]
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
        assert client.raw(head).startswith(b"HTTP/1.1 413 "), "nothing of the body is waited for"
        assert client.predict(photo()).status == 200
    assert [(reply.status, reply.json["error"][:41]) for reply in replies] == [
        (413, "the body is larger than 100,000 bytes: se")
    ] * 2


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=XX"])
def test_memory_of_a_refused_body_is_freed(start: Callable[..., Any], kind: str) -> None:
    part = [b'--XX\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'] * kind.startswith("multipart")
    sent = {"encode_chunked": True, "headers": {"Transfer-Encoding": "chunked", "Content-Type": kind}}
    with start(bytes=10_000_000) as client:
        assert client.predict(photo()).status == 200
        gc.collect()
        gc.disable()  # or chance would decide
        tracemalloc.start()
        try:
            assert client.ask("POST", "/predict", [*part, *chunks(100_000, 200)], **sent).status == 413
            assert tracemalloc.get_traced_memory()[1] > 10_000_000
            until(lambda: tracemalloc.get_traced_memory()[0] < 2_000_000)
        finally:
            tracemalloc.stop()
            gc.enable()


def test_too_many_files_and_forms_that_are_none(client: Client) -> None:
    assert client.form([("a", b"a")] * 65).json == {"error": "Too many files. Maximum number of files is 64."}
    assert client.form([("a", b"a")] * 5000).status == 413
    kind = "multipart/form-data"
    bad = {f"{kind}; boundary=XX": [b"", b"--XX\r\n", b"x" * 500, multipart([("a", b"b")])[:-6]], kind: [b"--\r\n"]}
    bad |= {"image/png": [b""], f"{kind}; boundary={'x' * 200}": [b"x"], f"{kind}; boundary=XX; ": [b"--XX--\r\n"]}
    for content_type, bodies in bad.items():
        for sent in bodies:
            assert client.predict(sent, Content_Type=content_type).status == 400, (content_type, sent)
    assert client.predict(b"x", Content_Type="multipart/mixed; boundary=XX").status == 415
    assert client.predict(b"x", Content_Encoding="gzip").status == 415
    assert client.predict(photo(), "/predict?top=0").json == {"error": "top: Input should be greater than or equal to 1"}
    assert client.ask("GET", "/predict").json == {"error": "Method Not Allowed: GET /predict"}


def test_a_slow_body_is_408(start: Callable[..., Any]) -> None:
    with start(body_seconds=0.3, idle_seconds=1) as client:
        slow = client.raw(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nslow")
        assert slow.startswith(b"HTTP/1.1 408 ")
        assert b"the body did not arrive within 0.3 s" in slow


def test_more_connections_than_allowed_are_503(start: Callable[..., Any]) -> None:
    with start(connections=3) as client, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", client.port), 60))
        until(lambda: client.ask("GET", "/healthz").status == 503)
        stack.close()
        until(lambda: client.ask("GET", "/healthz").status == 200)


def test_full_queue_sends_retry_after(start: Callable[..., Any]) -> None:
    with start(images=2) as client, ThreadPoolExecutor(2) as pool:
        assert client.form([("a", photo())] * 3).status == 429, "more images at once than all that may wait"
        client.engine.open.clear()
        waiting = [pool.submit(client.predict, photo()) for _ in range(2)]
        until(lambda: client.engine._decoded._value == 126)
        refused = client.predict(photo())
        client.engine.open.set()
        assert [reply.result().status for reply in waiting] == [200, 200]
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert client.predict(photo()).status == 200


def test_slow_request_times_out_and_the_next_is_answered(start: Callable[..., Any]) -> None:
    with start(answer_seconds=0.5) as client:
        client.engine.open.clear()
        assert client.predict(photo()).status == 429
        client.engine.open.set()
        until(lambda: client.predict(photo()).status == 200)


def test_a_network_that_fails_is_one_line_and_the_next_is_answered(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexnet.server.engine.classify", lambda *_: 1 / 0)
    failed = client.predict(photo())
    assert (failed.status, failed.json) == (500, {"error": "internal server error: see the server's log"})
    monkeypatch.undo()
    assert client.predict(photo()).status == 200


def test_a_worker_that_was_killed_is_replaced(client: Client) -> None:
    for child in psutil.Process().children():
        if "alexnet.data.decode_worker" in child.cmdline():
            child.kill()
            child.wait()
    assert [client.predict(photo()).json[0].get("error") for _ in range(4)] == [None] * 4


def test_a_bomb_is_answered(client: Client) -> None:
    file = io.BytesIO()
    Image.new("1", (12_001, 10_000)).save(file, "png")
    (answer,) = client.predict(file.getvalue()).json
    assert "12001x10000, 120 megapixels, but the limit" in answer["error"]


def test_names_are_repeated_harmlessly(client: Client) -> None:
    names = ["../../etc/passwd", "a\x1b[2Jb\u202e.png", "x" * 5000 + ".png"]
    replies = [client.form([(name, b"x")]) for name in names]
    assert [reply.status for reply in replies] == [200, 200, 400], "the headers of a part are limited too"
    assert [reply.json[0]["image"] for reply in replies[:2]] == ["../../etc/passwd", "a\\x1b[2Jb\\u202e.png"]


# Who may ask


def test_api_key_is_required_if_set(start: Callable[..., Any]) -> None:
    with start(key="s3cret") as client:
        refused = client.predict(photo())
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        for wrong in ("Bearer s3cre", "Bearer ", "Basic s3cret", "s3cret", "Bearer s3cret2", "Bearer \xff"):
            assert client.predict(photo(), Authorization=wrong).status == 401, wrong
        assert client.predict(photo(), Authorization="Bearer s3cret").status == 200
        assert client.predict(photo(), X_API_Key="s3cret").status == 200
        assert client.ask("GET", "/model").json["key"] is True
        assert client.predict(bytes(50 << 20), X_API_Key="no").status == 401, "before the body is read"


def test_other_names_and_pages_of_other_sites_are_refused(client: Client) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost.", "", "[::2]"):
        assert client.ask("GET", "/model", headers={"Host": host}).status == 400, host
    for host in ("localhost", f"LOCALHOST:{client.port}", "[::1]:80", "127.0.0.1"):
        assert client.ask("GET", "/model", headers={"Host": host}).status == 200, host
    assert client.predict(photo(), Sec_Fetch_Site="cross-site").status == 403
    assert client.predict(photo(), Sec_Fetch_Site="same-origin").status == 200


def test_every_answer_has_the_headers(client: Client) -> None:
    replies = [client.ask("GET", path) for path in ("/", "/model", "/nothing", "/openapi.json")]
    replies += [client.predict(b""), client.predict(photo()), client.ask("GET", "/", headers={"Host": "x"})]
    for reply in replies:
        assert reply.headers["content-security-policy"] == SECURITY_HEADERS["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "server" not in reply.headers
    assert client.raw(b"\x16\x03\x01 this is TLS\r\n\r\n").startswith(b"HTTP/1.1 400 ")


# The process


def test_the_access_log_is_json_and_holds_nothing_of_an_image(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "alexnet.access")
    client.form([("marker-name.png", photo() + b"marker-content"), ("x", b"marker")], "/predict?top=1&x=marker")
    client.ask("GET", "/a%0ab%1b")
    until(lambda: "/a" in caplog.text)
    logged = [JsonFormatter().format(record) for record in caplog.records][-2:]  # preceded by a request of an earlier test
    lines = [json.loads(line) for line in logged]
    assert [(line["method"], line["path"], line["status"], line["images"]) for line in lines] == [
        ("POST", "/predict", 200, 2),
        ("GET", "/a\nb\x1b", 404, 0),
    ]
    assert {"time", "method", "path", "status", "milliseconds", "bytes", "images"} == set(lines[0])
    assert lines[0]["bytes"] > len(photo())
    assert "marker" not in "".join(logged)
    assert all(line.isascii() and line.isprintable() for line in logged)


def test_a_client_that_disconnects_is_logged_as_499(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "alexnet.access")
    with socket.create_connection(("127.0.0.1", client.port), 60) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nhalf")
    until(lambda: caplog.records)
    assert [(record.levelname, record.msg["status"]) for record in caplog.records] == [("INFO", 499)]


@pytest.mark.skipif(os.name != "posix", reason="SIGTERM")
def test_sigterm_finishes_pending_requests_and_accepts_no_new_ones(trained: alexnet.Run) -> None:
    command = [sys.executable, "-m", "alexnet", "serve", str(trained.path), "--port", "0"]
    popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with popen as process, ExitStack() as stack:
        assert process.stdout is not None
        assert process.stderr is not None
        stack.callback(process.kill)
        port = int(re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())[1])
        children = psutil.Process(process.pid).children()
        assert children, "processes that decode"
        sent = photo()
        with socket.create_connection(("127.0.0.1", port), 60) as begun:
            begun.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(sent) + sent[:100])
            time.sleep(0.3)
            for receiver in (process, *children):  # as a service manager does, to the whole process group
                receiver.send_signal(signal.SIGTERM)
            until(lambda: refused(port))
            begun.sendall(sent[100:])
            assert begun.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert process.wait(60) == 143
        assert process.stderr.read().splitlines()[-1] == "alexnet: terminated: pending requests were answered"
    assert not psutil.wait_procs(children, 10)[1]


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return True
    return False


def test_a_port_in_use_is_one_line() -> None:
    with listen("127.0.0.1", 0) as other:
        other.listen()
        with pytest.raises(AlexNetError, match=r"cannot listen on 127.0.0.1, port \d+: .*; try another --port"):
            listen("127.0.0.1", other.getsockname()[1])
