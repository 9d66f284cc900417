"""What `predict` accepts as an image: paths, bytes, file objects, Pillow images, arrays; others raise a one-line error."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from proof.pictures import class_folders, encoded, picture
from typer.testing import CliRunner

import alexnet
from alexnet.cli.app import app
from alexnet.errors import AlexNetError, DataError
from alexnet.files import expand_user
from conftest import in_float32

PICTURE = picture(0, 7)
PIXELS = np.asarray(PICTURE)


@pytest.fixture(scope="module")
def run(trained: alexnet.Run) -> alexnet.Run:
    return in_float32(trained)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("given") / "one.png"
    PICTURE.save(path)
    return path


@pytest.fixture(scope="module")
def expected(run: alexnet.Run, file: Path) -> Any:
    """Equal to the answer for the file, up to rounding, which depends on the other images of the batch."""
    return pytest.approx(probabilities(run.predict(file)[0]), abs=1e-4)


def probabilities(answer: dict[str, Any]) -> dict[str, float]:
    return {prediction["label"]: prediction["probability"] for prediction in answer["predictions"]}


class Named(os.PathLike[str]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


FORMS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "numpy str": lambda path: np.str_(path),
    "PathLike": Named,
    "array": lambda _: PIXELS,
    "PIL image": lambda _: PICTURE,
    "PIL image, opened alone": Image.open,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "open file": lambda path: path.open("rb"),
}


@pytest.mark.parametrize("form", FORMS)
def test_predict_one_image_of_any_type(form: str, run: alexnet.Run, file: Path, expected: Any) -> None:
    assert [probabilities(answer) for answer in run.predict(FORMS[form](file))] == [expected]
    assert [probabilities(answer) for answer in run.predict([FORMS[form](file)])] == [expected]


def test_predict_several_images_of_any_type(run: alexnet.Run, file: Path, expected: Any) -> None:
    assert len(run.predict(np.stack([PIXELS] * 3))) == 3
    assert run.predict(np.empty((0, 8, 8, 3), np.uint8)) == []
    mixed = (FORMS[form](file) for form in FORMS)
    assert [probabilities(answer) for answer in run.predict(mixed)] == [expected] * len(FORMS)
    assert len(run.predict(np.array([str(file), str(file)]))) == 2
    opened = Image.open(file)
    assert [probabilities(answer) for answer in run.predict([opened] * 8)] == [expected] * 8


def test_file_object_is_read_from_its_start(run: alexnet.Run, file: Path, expected: Any) -> None:
    written = io.BytesIO()
    PICTURE.save(written, "PNG")
    with file.open("rb") as opened:
        assert [probabilities(answer) for answer in run.predict([written, opened, opened])] == [expected] * 3


def test_file_object_error_is_reported(run: alexnet.Run) -> None:
    class Broken:
        def read(self) -> bytes:
            raise RuntimeError("the connection was reset")

    assert run.predict([Broken()]) == [{"image": "file", "error": "the connection was reset"}]


@pytest.mark.parametrize("top", [0, -1, 2.5, "3", None])
def test_wrong_number_of_labels_is_refused(run: alexnet.Run, top: Any) -> None:
    for use in (run.predict, run.search):
        with pytest.raises(AlexNetError, match=r"top is .*, but should be a whole number, 1 or more"):
            use(PIXELS, top)


def test_image_names_of_inputs_without_path(run: alexnet.Run, file: Path) -> None:
    with file.open("rb") as opened:
        answers = run.predict([PIXELS, PICTURE, file.read_bytes(), io.BytesIO(file.read_bytes()), opened, Image.open(file)])
    assert [answer["image"] for answer in answers] == ["array", "image", "bytes", "file", str(file), str(file)]


WRONG: dict[str, tuple[Any, str]] = {
    "None": (None, "NoneType is not an image"),
    "number": (3, "int is not an image"),
    "tensor": (torch.zeros(3, 8, 8), "torch.Tensor is not an image"),
    "dict": ({"a": "b"}, "dict is not an image"),
    "set": ({"a"}, "set is not an image"),
    "float array": (np.zeros((8, 8, 3), np.float32), "array of float32, 8x8x3, but should be uint8"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), "array of uint8, 3x8x8, but should be uint8, H x W x 3"),
    "grey array": (np.zeros((8, 8), np.uint8), "array of uint8, 8x8"),
    "number array": (np.array(3), "one number"),
    "text file": (io.StringIO("text"), "open it with 'rb'"),
    "levels in lists": (PIXELS.tolist(), "nested lists are not an image"),
    "array of objects": (PIXELS.astype(object), "array of object"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("use", ["predict", "stream", "features", "stream_features", "explanations", "explain", "search"])
def test_input_that_is_no_image_is_data_error(name: str, use: str, run: alexnet.Run, tmp_path: Path) -> None:
    given, reason = WRONG[name]
    more = {"out": tmp_path} if use == "explain" else {}
    with pytest.raises(DataError, match=reason) as caught:
        list(getattr(run, use)(given, **more))
    assert "\n" not in str(caught.value)


def test_wrong_input_among_others_is_reported_in_place(run: alexnet.Run) -> None:
    items = [given for name, (given, _) in WRONG.items() if name not in ("text file", "levels in lists")]
    answers = run.predict([PIXELS, *items, b"not an image", io.StringIO("text"), [PIXELS], PIXELS])
    assert all("predictions" in answers[i] for i in (0, -1))
    assert all("error" in answer for answer in answers[1:-1])
    assert answers[1]["error"].startswith("NoneType is not an image: give a path, bytes, ")
    assert answers[3]["image"] == "Tensor"


def test_bytes_that_are_not_an_image_are_reported_like_such_a_file(run: alexnet.Run) -> None:
    assert run.predict(b"text") == [{"image": "bytes", "error": "not an image, or of an unknown format"}]
    assert run.predict(b"") == [{"image": "bytes", "error": "the file is empty"}]
    closed = io.BytesIO(b"x")
    closed.close()
    assert "closed" in run.predict(closed)[0]["error"]
    with Image.open(io.BytesIO(encoded(PICTURE, "PNG"))) as never_read:
        pass
    assert run.predict(never_read)[0]["error"].startswith("its file was closed before it was read")
    truncated = Image.open(io.BytesIO(encoded(picture(0, 0, (90, 90)), "JPEG")[:900]))
    assert "truncated" in run.predict(truncated)[0]["error"]


def test_pillow_image_equals_its_file(run: alexnet.Run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    clear = PICTURE.copy()
    clear.putalpha(Image.linear_gradient("L").resize(PICTURE.size))
    clear.save(tmp_path / "clear.png")
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257).save(tmp_path / "sixteen.png")
    PICTURE.quantize(9).save(tmp_path / "palette.png")
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as image:
            before = image.copy()
            result = run.predict([path, image])
            assert probabilities(result[0]) == pytest.approx(probabilities(result[1]), abs=1e-4), path.name
            assert np.array_equal(np.asarray(image), np.asarray(before))
    assert "which do not define white" in run.predict(Image.new("F", (8, 8)))[0]["error"]


def test_explain_and_search_name_outputs_after_inputs(run: alexnet.Run, tmp_path: Path, photos: Path) -> None:
    answers = list(run.explain([PICTURE, encoded(PICTURE, "PNG")], tmp_path))
    assert [Path(answer["figure"]).name for answer in answers] == ["image-explained.png", "bytes-explained.png"]
    run.index(photos, tmp_path / "index")
    result = run.search([PICTURE, 3], 2, index=tmp_path / "index", out=tmp_path / "sheet.png")  # type: ignore[list-item]
    assert len(result[0]["neighbours"]) == 2
    assert "int is not an image" in result[1]["error"]
    assert next(iter(run.explanations(PICTURE)))[0] is PICTURE


# Names that begin with ~


def test_tilde_expands_to_an_existing_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    assert expand_user("~") == tmp_path / "home"
    assert expand_user("~/a/b.png") == tmp_path / "home" / "a" / "b.png"
    for name in ("~$photo.png", "~nobody-here/a", "a/~b", "", "~~"):
        assert expand_user(name) == Path(name)
    (tmp_path / "~").mkdir()
    assert expand_user("~") == Path("~")


def test_commands_take_file_names_that_begin_with_a_tilde(
    tmp_path: Path, run: alexnet.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("~$photo.png", "other.png", "~.png"):
        PICTURE.save(tmp_path / name)
    runner, at = CliRunner(), str(run.path)
    for names in (["~$photo.png"], ["~$photo.png", "other.png", "~.png"], ["*.png"]):
        assert runner.invoke(app, ["predict", at, *names, "--jsonl"]).exit_code == 0
    piped = runner.invoke(app, ["predict", at, "-", "--jsonl"], input="~$photo.png\nother.png\n~$gone.png\n")
    assert piped.exit_code == 1
    assert piped.stdout.count("predictions") == 2
    assert '"~$gone.png", "error": "no such file"' in piped.stdout
    class_folders(tmp_path / "~$data", 5)
    (tmp_path / "list.csv").write_text("image,label\n~$photo.png,a\nother.png,b\n")
    for command in (["data", "check"], ["evaluate", at], ["search", "index", at, "--out", "index"]):
        result = runner.invoke(app, [*command, "~$data"])
        assert result.exit_code == 0, (command, result.output)
    assert runner.invoke(app, ["data", "check", "list.csv"]).exit_code == 0
    for command in (["data", "check"], ["train"], ["search", "index", at]):
        with pytest.raises(AlexNetError, match=r"~\$none"):
            runner.invoke(app, [*command, "~$none"], catch_exceptions=False, standalone_mode=False)
