"""Command line: output, streams and exit codes."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image
from proof.pictures import picture
from proof.torture import sets

import alexnet
from alexnet import recipe
from alexnet.errors import shell_quote
from alexnet.network.variants import VARIANTS
from commands import TINY_SETS, error, only_line, python, run
from conftest import TINY
from test_images import bad_files


def test_train_json_prints_one_document(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    tiny = sets({key: value for key, value in TINY.items() if key != "train.seed"})
    process = run("train", photos, "--out", out, "--epochs", 2, "--seed", 3, *tiny, "--json")
    result = json.loads(process.stdout)
    assert result == json.loads((out / "summary.json").read_text())
    assert result["epochs"] == 2
    assert "28 train, 4 val, 8 test images of 2 classes" in process.stderr
    assert "tensorboard --logdir" in process.stderr
    log = [line.partition("  ")[2] for line in (out / "log.txt").read_text().splitlines()]  # drop the time of day
    assert len(log) >= 6
    assert log == [line for line in process.stderr.splitlines() if line in log], "a slow machine also shows progress"
    assert "seed = 3" in (out / "recipe.toml").read_text()


def test_epochs_option_overrides_minutes(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[train]\nminutes = 5\n")
    run("train", photos, "--recipe", tmp_path / "mine.toml", "--out", tmp_path / "run", "--epochs", 2, *TINY_SETS)
    assert alexnet.load(tmp_path / "run").summary["epochs"] == 2


def test_train_prints_next_commands(photos: Path, tmp_path: Path) -> None:
    process = run("train", photos, "--out", tmp_path / "run", "--epochs", 1, *TINY_SETS)
    assert "top-1" in process.stdout
    assert f"{tmp_path / 'run'}/report.html" in process.stdout
    assert f"alexnet predict {shell_quote(tmp_path / 'run')}" in process.stdout


def test_evaluate_prints_json_or_a_table(trained: alexnet.Run, photos: Path) -> None:
    result = json.loads(run("evaluate", trained.path, "--json").stdout)
    assert result == trained.summary["test"]
    everything = json.loads(run("evaluate", trained.path, photos, "--json").stdout)
    assert everything["images"] == 40
    table = run("evaluate", trained.path, "--split", "val").stdout
    assert "across" in table
    assert "precision" in table
    assert "top-5" not in table, "of two classes it says nothing"


def test_predict_keeps_the_order(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_text("broken")
    names = [photos / "down" / "003.png", tmp_path / "broken.jpg", photos / "across" / "001.png"]
    result = json.loads(run("predict", trained.path, *names, "--json", "--top", 1, code=1).stdout)
    assert [answer["image"] for answer in result] == list(map(str, names))
    assert [a["predictions"][0]["label"] for a in result if "predictions" in a] == ["down", "across"]
    assert result[1] == {"image": str(names[1]), "error": "not an image, or of an unknown format"}


def test_predict_takes_folders_globs_and_standard_input(trained: alexnet.Run, photos: Path) -> None:
    folder = json.loads(run("predict", trained.path, photos / "down", "--json").stdout)
    glob = json.loads(run("predict", trained.path, photos / "down" / "*.png", "--json").stdout)
    lines = "".join(f"{answer['image']}\n" for answer in folder)
    process = run("predict", trained.path, "-", "--jsonl", stdin=lines)
    piped = [json.loads(line) for line in process.stdout.splitlines()]
    assert folder == glob == piped
    assert len(folder) == 20
    assert all(sum(p["probability"] for p in answer["predictions"]) == pytest.approx(1) for answer in folder)


def test_predict_prints_csv(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    name = tmp_path / "a, b.png"
    shutil.copy(photos / "down" / "000.png", name)
    rows = list(csv.DictReader(io.StringIO(run("predict", trained.path, name, "--csv").stdout)))
    assert [(row["image"], row["rank"], row["label"]) for row in rows] == [(str(name), "1", "down"), (str(name), "2", "across")]


def test_messy_folder_trains_predicts_and_is_unchanged(photos: Path, tmp_path: Path) -> None:
    root = tmp_path / "messy"
    shutil.copytree(photos, root)
    broken = bad_files(root / "across")
    del broken["absent.png"]
    Image.new("RGB", (40, 40)).convert("CMYK").save(root / "down" / "cmyk.jpg")
    Image.new("I;16", (40, 40), 30_000).save(root / "down" / "deep.png")
    picture(1, 1).save(root / "down" / "moving.gif", save_all=True, append_images=[picture(1, 2)])
    picture(1, 3).save(root / "down" / "照片.png")
    picture(1, 4).save(root / "down" / "really-a-png.jpg", "PNG")
    (root / "empty").mkdir()
    (root / ".ipynb_checkpoints").mkdir()
    (root / ".ipynb_checkpoints" / "x.png").write_bytes((root / "down" / "照片.png").read_bytes())
    odd = os.fsencode(root / "down") + b"/caf\xe9.png"  # a name that is not valid UTF-8, and a file that is not an image
    Path(os.fsdecode(odd)).write_text("broken")
    broken["caf\udce9.png"] = "not an image"
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(root.rglob("*")) if p.is_file()}
    process = run("train", root, "--out", tmp_path / "run", "--epochs", 1, *TINY_SETS, "--json")
    summary = json.loads(process.stdout)
    assert {Path(s["image"]).name for s in summary["skipped"]} == {*broken, "empty"}
    for name in broken:
        assert f"/{name}: ".encode("utf-8", "backslashreplace").decode() in process.stderr
    answers = json.loads(run("predict", tmp_path / "run", root, "--json", code=1).stdout)
    assert {Path(a["image"]).name for a in answers if "error" in a} == set(broken)
    assert len(answers) == 40 + len(broken) + 5
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(root.rglob("*")) if p.is_file()} == before


def test_predict_honours_exif_orientation(trained: alexnet.Run, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # must be rotated by 90 degrees
    stripes_down = picture(1, 7)
    stripes_down.save(tmp_path / "plain.jpg", quality=95)
    stripes_down.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    answers = trained.predict([tmp_path / "plain.jpg", tmp_path / "turned.jpg"], top=1)
    assert [answer["predictions"][0]["label"] for answer in answers] == ["down", "across"]


# Errors: one line, exit code 1


def test_unknown_dataset_is_one_line() -> None:
    assert "no dataset 'nowhere'" in only_line(python("-m", "alexnet", "train", "nowhere", code=1))


def test_damaged_or_missing_run_is_one_line(trained: alexnet.Run, tmp_path: Path) -> None:
    assert "no such folder" in error("predict", tmp_path / "nowhere", "x.png")
    assert "is not a run folder" in error("evaluate", tmp_path)
    for name, damage, message in [
        ("model.json", b"{", "model.json cannot be used"),
        ("model.json", (trained.path / "model.json").read_bytes().replace(b'"version": 3', b'"version": 9'), "newer version"),
        ("model.safetensors", b"cut", "is damaged: its SHA-256"),
    ]:
        copy = tmp_path / "copy"
        shutil.copytree(trained.path, copy)
        (copy / name).write_bytes(damage)
        assert message in error("predict", copy, "x.png")
        shutil.rmtree(copy)


def test_out_with_a_run_is_one_line(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    assert "name another --out" in (line := error("train", photos, "--out", trained.path))
    assert "--resume" not in line, "it is finished"
    stopped = tmp_path / "stopped"
    shutil.copytree(trained.path, stopped)
    (stopped / "summary.json").unlink()
    assert f"alexnet train --resume {shell_quote(stopped)}" in error("train", photos, "--out", stopped)


def test_out_not_writable_is_one_line(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = error("train", photos, "--out", tmp_path / "file" / "run")
    assert f"cannot write the run folder {tmp_path / 'file' / 'run'}" in line


def test_missing_images_and_unknown_labels_are_one_line(trained: alexnet.Run, photos: Path, tmp_path: Path) -> None:
    assert "no image 'nowhere*.png'" in error("predict", trained.path, "nowhere*.png")
    good = photos / "down" / "000.png"
    answers = json.loads(run("predict", trained.path, "nowhere.png", good, "--json", code=1).stdout)
    assert answers[0] == {"image": "nowhere.png", "error": "no such file"}
    assert answers[1]["predictions"][0]["label"] == "down", "the others are answered"
    shutil.copytree(photos, tmp_path / "other")
    (tmp_path / "other" / "down").rename(tmp_path / "other" / "up")
    assert "does not know: 'up'" in error("evaluate", trained.path, tmp_path / "other")


def test_unavailable_device_is_one_line(photos: Path) -> None:
    assert "no device 'nonsense'" in error("train", photos, "--device", "nonsense")


def test_usage_error_is_exit_code_2(trained: alexnet.Run) -> None:
    run("train", "--no-such-option", code=2)
    run("predict", trained.path, "x.png", "--json", "--csv", code=2)
    for given in (["photos"], ["--recipe", "fast"], ["--epochs", 3], ["--find-lr"]):
        assert "keeps its recipe" in run("train", *given, "--resume", trained.path, code=2).stderr
    assert "choose one of --epochs and --minutes" in run("train", "photos", "--epochs", 3, "--minutes", 1, code=2).stderr
    assert "Invalid value for '--epochs'" in run("train", "photos", "--epochs", 0, code=2).stderr


def test_debug_shows_the_traceback() -> None:
    assert "Traceback" in run("train", "nowhere", "--debug", code=1).stderr


# The rest


@pytest.mark.parametrize(("given", "expected"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")])
def test_waiting_threads_sleep_unless_told_otherwise(given: dict[str, str], expected: str) -> None:
    code = (
        "import os, sys, alexnet.cli; sys.argv[1:] = ['--version']; alexnet.cli.main();"
        "print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    )
    rest = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], env={**rest, **given}, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["False", expected]  # OpenMP reads it when torch is imported, not later


def test_full_disk_at_stdout_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(sys.modules["alexnet.cli.app"], "app", Mock(side_effect=full))
    assert error("model", "list") == f"alexnet: cannot write all of the output: {full.strerror}"


def test_lists_and_help() -> None:
    assert [line.partition(":")[0] for line in run("recipes", "list").stdout.splitlines()] == recipe.names()
    assert "[train]" in run("recipes", "show", "fast").stdout
    names = [line.split()[0] for line in run("model", "list").stdout.splitlines()]
    assert names == list(VARIANTS)
    assert "Usage: alexnet" in run("--help").stdout
    assert run("--version").stdout.split() == ["alexnet", alexnet.__version__]


@pytest.mark.long
def test_real_photos_train_and_predict(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = run("train", real_data / "imagenette", "--out", out, "--epochs", 1, "--set", "model.width=0.0625", "--json")
    summary = json.loads(process.stdout)
    assert summary["test"] is None
    assert summary["validation"]["images"] == 400
    assert "no test set" in process.stderr
    photo = next((real_data / "imagenette" / "val").rglob("*.JPEG"))
    (answer,) = json.loads(run("predict", out, photo, "--json").stdout)
    assert len(answer["predictions"]) == 5
    assert os.fspath(photo) == answer["image"]
