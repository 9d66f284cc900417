"""The page of `alexnet serve`, in a real browser against a stand-in for the server: `page_server.py`.

CHROMIUM is the path of the browser, AXE the path of axe.min.js (see CONTRIBUTING); without them the tests are skipped.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from proof.pages import OVERFLOW
from proof.pictures import heic, picture

from page_server import PAGE, PageServer

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: the page was not opened")

FILES = """files => { const all = new DataTransfer();
  for (const [name, type, base64] of files)
    all.items.add(new File([Uint8Array.from(atob(base64), c => c.charCodeAt(0))], name, {type}));
  return all; }"""
SEND = """([data, event, kind, key]) =>
  document.body.dispatchEvent(new window[kind](event, {[key]: data, bubbles: true, cancelable: true}))"""
BROWSER_ERROR = "Failed to load resource"  # logged by the browser itself for an error response


@pytest.fixture
def server() -> Iterator[PageServer]:
    ours = PageServer()
    yield ours
    ours.stop()


@pytest.fixture
def tab(browser: Any, server: PageServer) -> Iterator[Any]:
    """A page in a fresh context; any error in it fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    page, wrong = context.new_page(), []
    page.set_default_timeout(8000)
    page.on("console", lambda message: None if message.text.startswith(BROWSER_ERROR) else wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(server.url)
    sync_api.expect(page.locator("#run")).to_have_text("runs/imagenette")
    yield page
    context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for place, name in enumerate(["golf", "church", "tench", "torn"]):
        picture(place % 3, place, (320, 240)).resize((640, 480)).save(folder / f"{name}.jpg")
    (folder / "notes.txt").write_text("no picture")
    Image.new("RGB", (6000, 4000), "teal").save(folder / "wide.png")
    (folder / "heavy.jpg").write_bytes((folder / "golf.jpg").read_bytes() + bytes(2_000_001))
    return folder


def choose(tab: Any, folder: Path, *names: str) -> None:
    tab.set_input_files("#files", [folder / name for name in names])


def hand(tab: Any, event: str, kind: str, key: str, folder: Path, *names: str) -> None:
    """Dispatch an event that carries files to the page, as a drop or a paste does."""
    files = [(name, "image/jpeg", base64.b64encode((folder / name).read_bytes()).decode()) for name in names]
    data = tab.evaluate_handle(FILES, files)
    tab.evaluate(SEND, [data, event, kind, key])


def shows(tab: Any, label: str) -> None:
    sync_api.expect(tab.locator("#label")).to_have_text(label)


def explained(tab: Any) -> None:
    sync_api.expect(tab.locator("#layers")).not_to_have_class("layers pending")
    sync_api.expect(tab.locator("#layers")).to_be_visible()


def test_a_chosen_photo_gets_an_answer_heat_maps_and_layers(tab: Any, server: PageServer, photos: Path) -> None:
    choose(tab, photos, "golf.jpg")
    shows(tab, "golf ball")
    assert tab.locator("#bars li").count() == 5
    assert tab.locator("#bars data").all_inner_texts() == ["91.4%", "5.2%", "2.1%", "0.8%", "<0.1%"]
    assert tab.locator("#sure").inner_text() == "Sure."
    assert "about 91 are right" in tab.locator("#gloss").inner_text()
    assert "93.1% of 1,797 test images (95% interval: 91.8% to 94.2%)" in tab.locator("#accuracy").inner_text()
    explained(tab)
    assert server.asked == ["/predict golf.jpg", "/explain golf.jpg"]
    assert [name.split("\n")[0] for name in tab.locator("[role=tab]").all_inner_texts()] == [f"conv{i}" for i in range(1, 6)]
    sync_api.expect(tab.locator("#live")).to_have_text("Heat maps and layers are ready.")


def test_each_method_has_its_picture_and_its_sentence(tab: Any, photos: Path) -> None:
    choose(tab, photos, "golf.jpg")
    explained(tab)
    seen = set()
    for view in ("grad_cam", "occlusion", "integrated_gradients"):
        tab.locator(f"input[name=view][value={view}]").check()
        seen.add((tab.locator("#heat").get_attribute("src"), tab.locator("#meaning").inner_text()))
    assert len({source for source, _ in seen}) == len({words for _, words in seen}) == 3
    assert all("“golf ball”" in words for _, words in seen)
    tab.locator("#strength").fill("40")
    assert float(tab.locator("#heat").evaluate("e => getComputedStyle(e).opacity")) == pytest.approx(0.4)
    tab.locator("input[name=view][value=pixels]").check()
    assert "227 × 227 pixels" in tab.locator("#meaning").inner_text()
    assert tab.locator("#strength").is_disabled()


def test_heat_lies_over_the_sharp_photo_and_over_squares_where_the_input_is_tiny(
    tab: Any, server: PageServer, photos: Path
) -> None:
    choose(tab, photos, "tench.jpg")
    explained(tab)
    sync_api.expect(tab.locator("#pixels")).to_have_css("opacity", "0")
    server.side = 32
    choose(tab, photos, "church.jpg")
    sync_api.expect(tab.locator("#frame")).to_have_class("frame tiny")
    sync_api.expect(tab.locator("#pixels")).to_have_css("opacity", "1")
    sync_api.expect(tab.locator("#pixels")).to_have_css("image-rendering", "pixelated")


def test_heat_map_covers_the_visible_part_of_the_photo(tab: Any, server: PageServer, photos: Path) -> None:
    server.view = {"fit": "stretch", "zoom": [-1.25, 1.25]}
    tab.reload()
    choose(tab, photos, "tench.jpg")
    explained(tab)
    sync_api.expect(tab.locator("#photo")).to_have_css("object-fit", "fill")
    sync_api.expect(tab.locator("#photo")).to_have_css("transform", "matrix(-1.25, 0, 0, 1.25, 0, 0)")


@pytest.mark.parametrize(
    ("event", "kind", "key"), [("drop", "DragEvent", "dataTransfer"), ("paste", "ClipboardEvent", "clipboardData")]
)
def test_photos_can_be_dropped_and_pasted(tab: Any, photos: Path, event: str, kind: str, key: str) -> None:
    hand(tab, event, kind, key, photos, "church.jpg")
    shows(tab, "church")
    hand(tab, event, kind, key, photos)
    sync_api.expect(tab.locator("#notices [role=alert]")).to_be_visible()
    shows(tab, "church")


def test_several_photos_are_walked_through(tab: Any, server: PageServer, photos: Path) -> None:
    choose(tab, photos, "golf.jpg", "church.jpg", "tench.jpg")
    shows(tab, "golf ball")
    sync_api.expect(tab.locator("#thumbs [data-state=answered]")).to_have_count(3)
    assert "/predict church.jpg tench.jpg" in server.asked  # photos that are not being viewed are sent together
    tab.locator("#thumbs input").first.focus()
    tab.keyboard.press("ArrowRight")
    shows(tab, "church")
    assert tab.locator("#place").inner_text() == "2 of 3"
    sync_api.expect(tab.locator("#live")).to_contain_text("church.jpg: “church”, 91.4%")
    tab.locator("#next").click()
    tab.locator("#next").click()
    shows(tab, "golf ball")
    explained(tab)


def test_photo_that_the_browser_cannot_show_gets_a_preview_from_the_server(tab: Any, server: PageServer, photos: Path) -> None:
    pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: no HEIC photo was tried")
    names = [f"{name}.HEIC" for name in ("church", "tench")]
    for name in names:
        (photos / name).write_bytes(heic(Image.open((photos / name).with_suffix(".jpg")), quality=90))
    assert "heic" in (tab.locator("#files").get_attribute("accept") or "")
    choose(tab, photos, "golf.jpg", *names)
    tab.locator("#thumbs input").nth(1).check()
    shows(tab, "church")
    explained(tab)
    sync_api.expect(tab.locator("#thumbs [data-state=answered]")).to_have_count(3)
    sync_api.expect(tab.locator("#thumbs .blind")).to_have_count(0)
    for shown in (*tab.locator("#thumbs img").all(), tab.locator("#photo")):
        sync_api.expect(shown).to_have_js_property("naturalWidth", 640)
    tab.locator("input[name=view][value=photo]").check()
    sync_api.expect(tab.locator("#photo")).to_be_visible()
    assert sorted(one for one in server.asked if one.startswith("/preview")) == [f"/preview {name}" for name in names]


@pytest.mark.parametrize("kind", ["", "image/heic"])
def test_heic_photo_is_sent_whether_or_not_the_system_knows_its_type(
    tab: Any, server: PageServer, photos: Path, kind: str
) -> None:
    files = [("golf.HEIC", kind, base64.b64encode((photos / "golf.jpg").read_bytes()).decode())]
    tab.evaluate(SEND, [tab.evaluate_handle(FILES, files), "drop", "DragEvent", "dataTransfer"])
    shows(tab, "golf ball")


def test_low_confidence_is_said_in_words(tab: Any, photos: Path) -> None:
    choose(tab, photos, "torn.jpg")
    sync_api.expect(tab.locator("#sure")).to_have_text("Undecided: it could also be “golf ball”.")


def test_a_photo_of_none_of_the_labels_is_said_in_words(tab: Any, server: PageServer, photos: Path) -> None:
    server.unknown.add("golf.jpg")
    choose(tab, photos, "golf.jpg")
    sync_api.expect(tab.locator("#sure")).to_contain_text("Perhaps none of these")
    sync_api.expect(tab.locator("#live")).to_contain_text("Perhaps none of these")


def test_wrong_and_heavy_files_are_left_out_before_they_are_sent(tab: Any, server: PageServer, photos: Path) -> None:
    choose(tab, photos, "notes.txt", "golf.jpg", "heavy.jpg")
    notice = tab.locator("[data-kind=left-out]")
    sync_api.expect(notice).to_contain_text("“notes.txt” is not a photo")
    sync_api.expect(notice).to_contain_text("“heavy.jpg” has 2.1 MB; the limit is 2 MB")
    shows(tab, "golf ball")
    explained(tab)
    assert server.asked == ["/predict golf.jpg", "/explain golf.jpg"]
    notice.get_by_role("button").click()
    sync_api.expect(notice).to_have_count(0)


def test_a_photo_of_too_many_pixels_is_not_sent(tab: Any, server: PageServer, photos: Path) -> None:
    choose(tab, photos, "wide.png")
    sync_api.expect(tab.locator("#sure")).to_contain_text("6,000 × 4,000 pixels; the limit is 20,000,000")
    assert server.asked == []


def test_refused_photo_does_not_affect_others(tab: Any, server: PageServer, photos: Path) -> None:
    server.refuse = {"church.jpg"}
    choose(tab, photos, "golf.jpg", "church.jpg", "tench.jpg")
    sync_api.expect(tab.locator("#thumbs [data-state=answered]")).to_have_count(2)
    sync_api.expect(tab.locator("#thumbs [data-state=failed]")).to_have_count(1)
    tab.locator("#next").click()
    sync_api.expect(tab.locator("#sure")).to_have_text("The photo cannot be read: its data end too early.")
    server.refuse = set()
    tab.locator("#again").click()
    shows(tab, "church")


def test_a_server_that_is_gone_and_back_loses_nothing(tab: Any, server: PageServer, photos: Path) -> None:
    choose(tab, photos, "golf.jpg")
    explained(tab)
    server.stop()
    choose(tab, photos, "church.jpg", "tench.jpg")
    notice = tab.locator("[data-kind=halt]")
    sync_api.expect(notice).to_contain_text("The server does not answer. Your photos are kept.")
    tab.locator("#thumbs input").first.check()
    shows(tab, "golf ball")  # what is known stays
    notice.get_by_role("button").click()
    sync_api.expect(notice).to_be_visible()  # still gone
    server.start()
    notice.get_by_role("button").click()
    sync_api.expect(notice).to_have_count(0)
    sync_api.expect(tab.locator("#thumbs [data-state=answered]")).to_have_count(3)
    assert tab.evaluate("document.activeElement.id") == "label"  # focus is not lost when the button disappears


def test_a_busy_server_is_asked_again_after_the_time_it_names(tab: Any, server: PageServer, photos: Path) -> None:
    server.busy = 1
    choose(tab, photos, "golf.jpg")
    sync_api.expect(tab.locator("[data-kind=halt]")).to_contain_text("The server is busy.")
    shows(tab, "golf ball")
    sync_api.expect(tab.locator("[data-kind=halt]")).to_have_count(0)


def test_a_key_is_asked_for_and_kept_for_the_session(tab: Any, server: PageServer, photos: Path) -> None:
    server.key = "secret"
    choose(tab, photos, "golf.jpg")
    field = tab.locator("#key-field")
    sync_api.expect(field).to_be_focused()
    field.fill("wrong")
    tab.keyboard.press("Enter")
    sync_api.expect(tab.locator("#key-words")).to_contain_text("not accepted")
    tab.keyboard.press("Escape")
    sync_api.expect(tab.locator("[data-kind=halt]")).to_contain_text("needs a key")
    tab.locator("[data-kind=halt] button").click()
    field.fill("secret")
    tab.keyboard.press("Enter")
    shows(tab, "golf ball")
    explained(tab)
    tab.reload()
    sync_api.expect(tab.locator("#run")).to_have_text("runs/imagenette")
    assert tab.locator("dialog[open]").count() == 0


def test_all_of_it_works_by_keyboard(tab: Any, photos: Path) -> None:
    def focused(what: str) -> None:
        for _ in range(30):
            if tab.evaluate("what => document.activeElement.matches(what)", what):
                return
            tab.keyboard.press("Tab")
        pytest.fail(f"Tab does not lead to {what}")

    chosen = [photos / "golf.jpg", photos / "church.jpg"]
    tab.on("filechooser", lambda chooser: chooser.set_files(chosen))
    focused("#choose")
    tab.keyboard.press("Enter")
    shows(tab, "golf ball")
    explained(tab)
    assert tab.evaluate("document.activeElement.id") == "choose"
    focused("#thumbs input")
    focused("input[name=view]")
    tab.keyboard.press("ArrowRight")
    assert "grey patch" in tab.locator("#meaning").inner_text()
    focused("#strength")
    tab.keyboard.press("ArrowLeft")
    assert tab.locator("#strength").input_value() == "70"
    focused("[role=tab]")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#layer-title").inner_text() == "conv2: 256 maps of 27 × 27"
    tab.keyboard.press("End")
    assert "17 × 17 of the 227 × 227" in tab.locator("#layer-words").inner_text()
    focused("input[name=map]")
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#map-caption").inner_text() == "conv5, map 2"
    tab.locator("#next").focus()
    tab.keyboard.press("Enter")
    shows(tab, "church")
    explained(tab)
    assert tab.locator("#map-caption").inner_text() == "conv5, map 2"  # the same map of the next photo


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_is_wider_than_the_page(tab: Any, server: PageServer, photos: Path, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 740})
    assert tab.evaluate(OVERFLOW) == 0
    server.labels = ["a" * 70, "the label of a folder with rather many words in its name", *server.labels]
    tab.reload()
    choose(tab, photos, *["golf.jpg", "church.jpg"] * 6, "notes.txt")
    explained(tab)
    assert tab.evaluate(OVERFLOW) == 0
    choose(tab, photos, "torn.jpg")
    shows(tab, "the label of a folder with rather many words in its name")
    assert tab.evaluate(OVERFLOW) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_problem(tab: Any, server: PageServer, photos: Path, scheme: str) -> None:
    axe = os.environ.get("AXE")
    if not axe:
        pytest.skip("AXE names no axe.min.js: accessibility was not checked")

    def faults() -> list[str]:
        tab.evaluate(Path(axe).read_text(encoding="utf-8"))
        found = tab.evaluate("axe.run()")["violations"]
        return [f"{each['id']}: {each['nodes'][0]['html']}" for each in found if each["impact"] in ("serious", "critical")]

    tab.emulate_media(color_scheme=scheme)
    assert faults() == []
    choose(tab, photos, "golf.jpg", "church.jpg", "notes.txt")
    explained(tab)
    assert faults() == []
    server.key = "secret"
    choose(tab, photos, "tench.jpg")
    sync_api.expect(tab.locator("dialog[open]")).to_be_visible()
    assert faults() == []
    tab.keyboard.press("Escape")
    sync_api.expect(tab.locator("[data-kind=halt]")).to_be_visible()
    assert faults() == []


def test_the_page_asks_for_nothing_elsewhere() -> None:
    for file in PAGE.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http:" not in text
        assert "https:" not in text
