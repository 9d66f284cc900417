"""`export --page`: a folder of files that answers in the browser as `predict` does, anywhere and offline.

Most tests need Chromium, playwright (see test_page.py) and the archive of onnxruntime-web; without them they are skipped.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from proof.pages import OVERFLOW
from proof.static_page import ALIKE, PAINTED, painted

import alexnet
from alexnet.errors import AlexNetError, RunError
from alexnet.export import page
from alexnet.export.browser import program
from alexnet.files import user_cache
from conftest import needs_export

pytestmark = needs_export
ARCHIVE = user_cache() / f"onnxruntime-web-{page.RUNTIME}.tgz"
needs_archive = pytest.mark.skipif(not ARCHIVE.is_file(), reason="no archive of onnxruntime-web: no page was exported")


def test_a_browser_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHROMIUM", "/nowhere/chromium")
    with pytest.raises(RunError, match="CHROMIUM is '/nowhere/chromium', which is not a program: set it to"):
        program()


@pytest.fixture(scope="module")
def site(trained: alexnet.Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root folder of a host, with a page in the subfolder `sub/page`."""
    root = tmp_path_factory.mktemp("site")
    trained.export_page(root / "sub/page")
    return root


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/sub/page/"
        server.shutdown()


@pytest.mark.long
@needs_archive
@pytest.mark.skipif(program() is None, reason="no Chromium: the page was not compared")
def test_the_page_says_what_predict_says_and_the_comparison_is_kept(site: Path) -> None:
    found = json.loads((site / "sub/page/comparison.json").read_text(encoding="utf-8"))
    assert found["browser"]["images"] > 0
    assert found["browser"]["unread"] == 0
    assert found["browser"]["close"] == found["close"] == 1
    assert found["file"] == "model.onnx", "no path of this machine"


@needs_archive
def test_the_page_answers_in_the_browser_from_its_own_folder_alone_and_offline(
    browser: Any, site: Path, address: str, trained: alexnet.Run, photos: Path
) -> None:
    from playwright.sync_api import expect

    photo = next(file for file in sorted(photos.rglob("*.png")))
    [answer] = trained.predict([photo])
    context = browser.new_context(viewport={"width": 360, "height": 740}, reduced_motion="reduce")
    asked, wrong = [], []
    context.on("request", lambda request: asked.append(request.url))
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    tab.on("console", lambda message: wrong.append(message.text))
    tab.on("pageerror", lambda error: wrong.append(str(error)))

    def answered() -> None:
        tab.set_input_files("#files", photo)
        expect(tab.locator("#bars li")).to_have_count(len(trained.labels), timeout=60_000)
        assert tab.locator("#label").inner_text() == answer["predictions"][0]["label"]

    tab.goto(address)
    expect(tab.locator("#run")).to_have_text(trained.path.name)
    answered()
    shown = float(tab.locator("#bars data").first.get_attribute("value"))
    assert shown == pytest.approx(answer["predictions"][0]["probability"], abs=0.01)
    assert tab.locator("#photo").is_visible()
    assert not any(tab.locator(where).is_visible() for where in ("#layers", "#loading"))
    expect(tab.locator("#live")).to_have_text("The heat map is ready.")
    assert tab.locator(".views label:visible").all_inner_texts() == ["Photo", "Grad-CAM"]
    assert np.corrcoef(tab.evaluate(PAINTED), painted(trained, photo))[0, 1] > ALIKE
    assert tab.evaluate(OVERFLOW) == 0
    tab.set_input_files("#files", {"name": "torn.png", "mimeType": "image/png", "buffer": photo.read_bytes()[:40]})
    expect(tab.locator("#sure")).to_contain_text("save it as JPEG")
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []
    tab.evaluate("navigator.serviceWorker.ready.then(() => null)")
    context.set_offline(True)
    tab.reload()
    answered()
    context.close()
    assert wrong == []


@pytest.mark.long
@needs_archive
def test_a_page_that_disagrees_or_would_overwrite_is_not_written(
    trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"predictions": [{"label": label, "probability": 1 / len(trained.labels)} for label in trained.labels]}
    monkeypatch.setattr(page, "program", lambda: "some-browser")
    monkeypatch.setattr(page, "ask", lambda browser, folder, images: [wrong] * len(images))
    with pytest.raises(RunError, match="was not written: some-browser disagrees with PyTorch"):
        trained.export_page(tmp_path / "page")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="holds what alexnet did not make: name another folder"):
        trained.export_page(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_missing_or_damaged_runtime_is_one_line(
    trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "user_cache", lambda: tmp_path)
    with pytest.raises(AlexNetError, match=r"^the page needs onnxruntime-web [\d.]+, once: mkdir -p .* && npm pack .*$"):
        trained.export_page(tmp_path / "page")
    (tmp_path / ARCHIVE.name).write_bytes(b"damaged")
    with pytest.raises(AlexNetError, match="damaged, or not onnxruntime-web"):
        trained.export_page(tmp_path / "page")
