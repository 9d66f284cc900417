"""The opset and IR version that an exported file requires of onnxruntime, and where each is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

import alexnet
from alexnet.cli.output import print_export
from alexnet.export.model import IR, ONNXRUNTIME, OPSET
from conftest import mostly_long
from test_export import pytestmark  # noqa: F401 - the same PyTorch


@mostly_long(("bare", "int8"), [(False, False), (True, True)], (False, False))
def test_export_opset_and_oldest_onnxruntime(
    trained: alexnet.Run,
    exported: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    bare: bool,
    int8: bool,
) -> None:
    result = trained.export(tmp_path / "model.onnx", bare=bare, int8=int8) if bare else exported
    model = onnx.load(result["file"])
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert model.ir_version == 9
    assert {each.key: each.value for each in model.metadata_props}["onnxruntime"] == ">=1.17"
    assert (result["opset"], result["ir_version"], result["onnxruntime"]) == (20, 9, ">=1.17")
    assert json.loads(Path(f"{result['file']}.json").read_text(encoding="utf-8")) == result
    print_export(result)
    assert "needs       onnxruntime >=1.17 (opset 20, IR version 9)" in capsys.readouterr().out.splitlines()


def test_opset_and_ir_version_match_one_onnx_release() -> None:
    releases = {(row[1], row[2]): row[0] for row in helper.VERSION_TABLE}  # ONNX's own table
    assert releases[IR, OPSET] == "1.15.0"
    assert ONNXRUNTIME == "1.17", "the first onnxruntime that is built on ONNX 1.15"
