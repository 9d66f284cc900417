"""The adapters in examples/ give what the libraries ask for; the libraries' parts that they use are written out here."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from proof.pictures import picture

import alexnet

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        picture(i, i).save(path)
    return paths


def pretend(monkeypatch: pytest.MonkeyPatch, **modules: dict[str, Any]) -> None:
    """Put modules with these contents where they are imported from; `__` in a name is a dot."""
    for name, content in modules.items():
        parts = name.replace("__", ".").split(".")
        for end in range(1, len(parts) + 1):
            dotted = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, dotted, sys.modules.get(dotted) or ModuleType(dotted))
        vars(sys.modules[".".join(parts)]).update(content)


def test_brainscore_model(trained: alexnet.Run, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Helper:
        def __init__(self, get_activations: Any, preprocessing: Any, identifier: str) -> None:
            assert preprocessing is None, "images come as paths"
            self.get_activations = get_activations

        def insert_attrs(self, wrapper: Any) -> None:
            wrapper.from_paths = self.get_activations

        def __call__(self, stimuli: Any, layers: Any) -> Any:
            return self.get_activations(np.array([str(path) for path in stimuli]), layers)

    registry: dict[str, Any] = {}
    committed = {"ModelCommitment": lambda name, activations, layers: SimpleNamespace(**locals())}
    pretend(
        monkeypatch,
        brainscore_vision={"model_registry": registry},
        brainscore_vision__model_helpers__activations__core={"ActivationsExtractorHelper": Helper},
        brainscore_vision__model_helpers__brain_transformation=committed,
    )
    monkeypatch.setenv("ALEXNET_RUN", str(trained.path))
    runpy.run_path(str(EXAMPLES / "brainscore_model.py"))
    model = registry["examples"]()
    assert model.layers == [name for name in trained.network.layer_names if name.startswith(("relu", "tanh", "pool"))]
    found = model.activations(images, [*model.layers, "logits"])
    assert list(found) == [*model.layers, "logits"]
    expected = trained.features(images, [*model.layers, "fc8"])
    for layer, values in found.items():
        np.testing.assert_array_equal(values, expected["fc8" if layer == "logits" else layer])


def test_net2brain_model(trained: alexnet.Run, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, net2brain__architectures__netsetbase={"NetSetBase": object})
    netset = runpy.run_path(str(EXAMPLES / "net2brain_model.py"))["AlexNetRun"](str(trained.path), "cpu")
    netset.get_model(True)
    assert netset.layers == list(trained.network.layer_names)
    image = netset.get_preprocessing_function("image")(picture(1, 1), "x", "cpu")
    found = netset.get_feature_cleaner("image")(netset, netset.extraction_function(image, ["relu5", "fc7"]))
    expected = trained.features(image, ["relu5", "fc7"])
    assert {name: tuple(values.shape) for name, values in found.items()} == {n: v.shape for n, v in expected.items()}
    for name, values in found.items():
        np.testing.assert_array_equal(values.numpy(), expected[name])
    assert list(netset.extraction_function(image, "top_level")) == netset.layers
