"""Labels that look the same are one class; labels that differ only in case are reported."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import alexnet
from alexnet.data.check import KINDS
from alexnet.data.labels import labels_differing_in_case, normalize_label
from alexnet.data.sources import open_table
from alexnet.errors import DataError
from test_sources import make_table, save

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("label", "tidy"),
    [
        *[(DECOMPOSED, COMPOSED), (" cat ", "cat"), ('"cat"', "cat"), ("'cat'", "cat"), ("“cat”", "cat"), ("\ufeffcat", "cat")],
        *[("c\u200bat", "cat"), ("new\u00a0york", "new york"), ("new  york", "new york"), ("rock 'n' roll", "rock 'n' roll")],
        *[("Cat", "Cat"), ("O'Hara", "O'Hara"), ("\u200b", ""), ("a\nb", "a\nb"), ("नमस्\u200dते", "नमस्\u200dते"), ('"', '"')],
    ],
)
def test_label_normalisation(label: str, tidy: str) -> None:
    assert normalize_label(label) == tidy


@given(st.text(max_size=20))
def test_label_normalisation_is_idempotent_for_nfc_and_nfd(label: str) -> None:
    tidy = normalize_label(label)
    assert normalize_label(tidy) == tidy == normalize_label(unicodedata.normalize("NFD", label))


def test_class_folders_in_nfc_and_nfd_are_one_class(tmp_path: Path) -> None:
    for i, label in enumerate((COMPOSED, DECOMPOSED, "bar", "bar ")):
        save(tmp_path / label / f"{i}.png")
    if len(list(tmp_path.iterdir())) < 4:
        pytest.skip("this file system takes both forms for one name")
    table = open_table(tmp_path)
    assert table.labels == ("bar", COMPOSED)
    assert sorted(table.images) == sorted([f"{COMPOSED}/0.png", f"{DECOMPOSED}/1.png", "bar/2.png", "bar /3.png"])
    assert all(Path(str(source)).exists() for source in table.sources())


def test_labels_that_differ_in_case_are_reported_by_check(tmp_path: Path) -> None:
    file = tmp_path / "list.csv"
    labels = ("cat", "Cat", "dog", "DOG", "emu")
    for i, _ in enumerate(labels):
        save(tmp_path / f"{i}.png", seed=i)
    file.write_text("image,label\n" + "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels)))
    problems = alexnet.check(file).to_json()["problems"]
    assert {p["detail"] for p in problems if p["kind"] == "case"} == {"'Cat', 'cat'", "'DOG', 'dog'"}
    assert "case" in KINDS
    assert labels_differing_in_case(("cat", "dog")) == []


def test_evaluate_matches_labels_in_nfc_and_nfd() -> None:
    table = make_table({COMPOSED: 2, "dog": 1})
    for labels in ((DECOMPOSED, "dog"), (COMPOSED, "dog"), ("dog", f"{DECOMPOSED} ")):
        turned = table.with_labels(labels)
        assert [normalize_label(turned.labels[i]) for i in turned.targets] == [COMPOSED, COMPOSED, "dog"]


def test_unknown_label_that_differs_in_case_is_named(
    trained: alexnet.Run, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shouted = make_table({label.upper(): 3 for label in trained.labels})
    monkeypatch.setattr("alexnet.api.open_table", lambda *_, **__: shouted)
    with pytest.raises(DataError, match="upper and lower case count"):
        trained.evaluate(photos)
