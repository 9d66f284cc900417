"""`export --openvino`: what OpenVINO computes is compared before the files are written, and refused where it differs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import alexnet
from alexnet.errors import AlexNetError, RunError
from alexnet.export import openvino as room
from conftest import needs_export

pytestmark = needs_export


@pytest.fixture
def library() -> Any:
    sys.modules.setdefault("openvino_telemetry", None)  # as the export does
    return pytest.importorskip("openvino", reason="OpenVINO is not installed: nothing was exported for it")


def test_openvino_says_what_predict_says(library: Any, trained: alexnet.Run, tmp_path: Path) -> None:
    result = trained.export_openvino(tmp_path / "model.xml")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml", "model.xml.json"]
    assert result["close"] == result["same_top1"] == 1
    assert result == json.loads((tmp_path / "model.xml.json").read_text(encoding="utf-8"))
    network = library.Core().read_model(tmp_path / "model.xml")
    assert json.loads(network.get_rt_info(["framework", "labels"]).astype(str)) == list(trained.labels)
    model = library.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    image = np.random.default_rng(0).integers(0, 256, (37, 90, 3), dtype=np.uint8)
    [answer] = trained.predict([image], top=len(trained.labels))
    found = {each["label"]: each["probability"] for each in answer["predictions"]}
    expected = [found[label] for label in trained.labels]
    np.testing.assert_allclose(model({"image": image})["probabilities"], expected, atol=0.02)
    trained.export_openvino(tmp_path / "model.xml")  # its own files are replaced


def test_files_that_disagree_are_not_written(
    library: Any, trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(image: NDArray[np.uint8]) -> tuple[NDArray[np.float64], None]:
        return np.full(len(trained.labels), 1 / len(trained.labels)), None

    monkeypatch.setattr(room, "_model", lambda library, file: wrong)
    with pytest.raises(RunError, match="was not written: OpenVINO disagrees with PyTorch"):
        trained.export_openvino(tmp_path / "model.xml")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_and_another_ending_are_one_line(
    trained: alexnet.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "openvino", None)
        with pytest.raises(AlexNetError, match=r"^exporting for OpenVINO needs it .*: pip install --no-deps openvino$"):
            trained.export_openvino(tmp_path / "model.xml")
    monkeypatch.setattr(room, "_openvino", lambda: None)
    with pytest.raises(AlexNetError, match=r"model.onnx: OpenVINO's files end in .xml"):
        trained.export_openvino(tmp_path / "model.onnx")
