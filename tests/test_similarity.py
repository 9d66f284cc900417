"""Similarity of representations: dissimilarities, their rank correlation and CKA, against SciPy and the formulas in float64."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from scipy.stats import t as student

import alexnet
from alexnet.errors import DataError, RunError
from alexnet.rsa.compare import _alignments, _rank_correlations
from alexnet.rsa.measures import centred, cosines, dissimilarities, gram, pairs, ranked
from alexnet.rsa.seeds import Seeds
from commands import error, run
from conftest import mostly_long

NAMES = tuple(f"{i}.png" for i in range(24))


def features(seed: int, units: int = 30, count: int = 24) -> np.ndarray:
    """Return random features of two groups of images."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, units)) + random.normal(size=(2, units))[np.arange(count) % 2]


def write(path: Path, names: tuple[str, ...] = NAMES, **layers: np.ndarray) -> Path:
    """Write features as `alexnet features` does."""
    arrays = {layer: values.astype(np.float32) for layer, values in layers.items()}
    if path.suffix == ".npz":
        np.savez(path, images=np.array(names), maps=np.array("keep"), **arrays)
    elif path.suffix == ".mat":
        savemat(path, {"images": np.array(names, dtype=object)[:, None], "maps": "keep", **arrays})
    elif path.suffix == ".zarr":
        zarr = pytest.importorskip("zarr")
        group = zarr.open_group(path, mode="w")
        for name, values in {"images": np.array(names, dtype=object), **arrays}.items():
            kind = str if name == "images" else values.dtype
            group.create_array(name, shape=values.shape, dtype=kind, chunks=values.shape)[:] = values
    else:
        with h5py.File(path, "w") as file:
            file.create_dataset("images", data=list(names), dtype=h5py.string_dtype())
            for layer, values in arrays.items():
                file.create_dataset(layer, data=values)
    return path


@given(
    kind=st.sampled_from(["correlation", "euclidean", "cosine"]),
    shape=st.tuples(st.integers(2, 12), st.integers(3, 40)),
    shift=st.sampled_from([0.0, 1.0, 100.0]),
    seed=st.integers(0, 99),
)
def test_dissimilarities_equal_scipys(kind: Any, shape: tuple[int, int], shift: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(shift, 1, shape)
    np.testing.assert_allclose(pairs(dissimilarities(values, kind)), pdist(values, kind), rtol=1e-10, atol=1e-10)


def test_rank_correlation_equals_scipys_with_ties() -> None:
    first, second = np.random.default_rng(0).integers(0, 9, (2, 400)).astype(float)
    assert cosines([ranked(first), ranked(second)])[0, 1] == pytest.approx(spearmanr(first, second).statistic, abs=1e-12)


@pytest.mark.parametrize("units", [(5, 9), (60, 40)])
def test_cka_is_the_formula_on_features(units: tuple[int, int]) -> None:
    """Kornblith and others (2019): the squared norm of Y'X over the norms of X'X and Y'Y, of centred features."""
    x, y = features(1, units[0]), features(2, units[1])
    x0, y0 = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.norm(y0.T @ x0) ** 2 / (np.linalg.norm(x0.T @ x0) * np.linalg.norm(y0.T @ y0))
    assert cosines([centred(gram(z)).ravel() for z in (x, y)])[0, 1] == pytest.approx(expected, abs=1e-10)


def test_cka_ignores_rotation_scale_and_shift() -> None:
    x = features(1)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(30, 30)))[0]
    grams = [centred(gram(z)).ravel() for z in (x, 7 * x @ rotation + 3)]
    assert cosines(grams)[0, 1] == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".mat", ".zarr"])
def test_files_in_every_format_are_compared_layer_by_layer(tmp_path: Path, suffix: str) -> None:
    x, y = features(1), features(2, 8).reshape(24, 2, 2, 2)
    result = alexnet.similarity([write(tmp_path / f"f{suffix}", relu5=x, fc7=y)], resamples=20)
    first, second = (result["names"].index(name) for name in ("relu5", "fc7"))
    x, y = x.astype(np.float32).astype(float), y.astype(np.float32).astype(float).reshape(24, -1)
    expected = spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic
    assert result["rdm"]["values"][first][second] == pytest.approx(expected, abs=1e-9)
    grams = [centred(gram(z)).ravel() for z in (x, y)]
    assert result["cka"]["values"][first][second] == pytest.approx(cosines(grams)[0, 1], abs=1e-9)
    for key in ("rdm", "cka"):
        values, low, high = (np.array(result[key][part]) for part in ("values", "low", "high"))
        assert (values == values.T).all()
        assert (low <= values + 1e-12).all()
        assert (values <= high + 1e-12).all()
        np.testing.assert_allclose(np.diag(values), 1)
    assert result == alexnet.similarity([tmp_path / f"f{suffix}"], resamples=20)
    assert result["images"] == 24


@pytest.mark.parametrize("form", ["npy", "plain csv", "named csv"])
def test_a_given_matrix_is_compared_by_its_images(tmp_path: Path, form: str) -> None:
    x, given = features(1), dissimilarities(features(5))
    file, path = write(tmp_path / "f.npz", fc7=x), tmp_path / ("people." + form[-3:])
    if form == "npy":
        np.save(path, given)
    elif form == "plain csv":
        np.savetxt(path, given, delimiter=",", fmt="%.17g")
    else:  # as pandas writes it, in another order
        order = np.random.default_rng(4).permutation(24)
        rows = [["", *(NAMES[i] for i in order)]]
        rows += [[NAMES[i], *(repr(float(given[i, j])) for j in order)] for i in order]
        path.write_text("\n".join(map(",".join, rows)) + "\n")
    result = alexnet.similarity([file, path], resamples=0)
    assert result["names"] == ["f fc7", "people"]
    expected = spearmanr(pdist(x.astype(np.float32).astype(float), "correlation"), pairs(given)).statistic
    assert result["rdm"]["values"][0][1] == pytest.approx(expected, abs=1e-9)
    assert result["cka"]["values"] == [[pytest.approx(1), None], [None, None]]
    assert result["rdm"]["low"] == [[None, None], [None, None]]


def test_files_with_the_images_in_another_order_are_aligned(tmp_path: Path) -> None:
    order = np.random.default_rng(4).permutation(24)
    files = [
        write(tmp_path / "a.npz", fc7=features(1)),
        write(tmp_path / "b.npz", tuple(NAMES[i] for i in order), fc7=features(1)[order]),
    ]
    result = alexnet.similarity(files, resamples=10)
    for key in ("rdm", "cka"):
        assert np.array(result[key]["values"]) == pytest.approx(np.ones((2, 2)), abs=1e-9)
        assert np.array(result[key]["low"]) == pytest.approx(np.ones((2, 2)), abs=1e-6)


@pytest.mark.long
def test_intervals_hold_the_truth_of_many_images() -> None:
    """Of samples of 60 images, nine in ten intervals or more hold the value for 2,000 images, up to the bias of few images."""
    random = np.random.default_rng(0)
    shared = random.normal(size=(2000, 6))
    x, y = (shared @ random.normal(size=(6, 20)) + random.normal(size=(2000, 20)) for _ in range(2))
    truth = spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic
    inside = 0
    for _ in range(40):
        rows = random.choice(2000, 60, replace=False)
        _, low, high = _rank_correlations([dissimilarities(x[rows]), dissimilarities(y[rows])], 100)
        inside += low[0, 1] <= truth <= high[0, 1]
    assert inside >= 32


def test_the_figure_is_drawn_and_protected(tmp_path: Path) -> None:
    file, figure = write(tmp_path / "f.npz", relu5=features(1), fc7=features(2)), tmp_path / "s.png"
    assert alexnet.similarity([file], figure, resamples=5)["figure"] == str(figure)
    with Image.open(figure) as image:
        assert min(image.size) > 300
    alexnet.similarity([file], figure, resamples=0)
    Image.new("RGB", (4, 4)).save(figure)
    with pytest.raises(RunError, match="was not made by alexnet"):
        alexnet.similarity([file], figure)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones((3, 4)), "is 3 x 4, but a dissimilarity matrix is square"),
        (np.eye(24), "not 0 on its diagonal: for similarities, give 1 minus them"),
        (np.triu(np.ones((24, 24)), 1), "not symmetric"),
        (np.full((24, 24), np.nan), "missing or infinite"),
        (np.zeros((5, 5)), "is of 5 images, but the first file of 24"),
    ],
)
def test_what_is_no_dissimilarity_matrix_is_refused(tmp_path: Path, matrix: np.ndarray, message: str) -> None:
    file = write(tmp_path / "f.npz", fc7=features(1))
    np.save(tmp_path / "m.npy", matrix)
    with pytest.raises(DataError, match=message):
        alexnet.similarity([file, tmp_path / "m.npy"])


def test_errors_are_one_line(tmp_path: Path) -> None:
    file = write(tmp_path / "f.npz", fc7=features(1))
    write(tmp_path / "g.npz", (*NAMES[:-1], "new.png"), fc7=features(1))
    assert "23.png is in one of them alone" in error("similarity", file, tmp_path / "g.npz")
    write(tmp_path / "dead.npz", fc7=np.where(np.arange(24)[:, None] == 3, 0, features(1)))
    assert "fc7: the units of row 3 are all the same; use euclidean" in error("similarity", tmp_path / "dead.npz")
    for name in ("cut.npz", "cut.h5", "cut.mat", "cut.npy", "cut.csv", *(["cut.zarr"] if find_spec("zarr") else [])):
        (tmp_path / name).write_bytes(b"\x89PK\x03\x04 not this")
        assert "cannot be read" in error("similarity", tmp_path / name), name
    np.savez(tmp_path / "other.npz", fc7=features(1))
    assert "no names of images" in error("similarity", tmp_path / "other.npz")
    assert "ends in .npz" in error("similarity", tmp_path / "f.txt")
    assert "cannot be read" in error("similarity", tmp_path / "none.npz")


def test_tables_that_could_be_misread_are_refused(tmp_path: Path) -> None:
    file, given = write(tmp_path / "f.npz", fc7=features(1)), dissimilarities(features(5))
    rows = [[NAMES[i], *(repr(float(value)) for value in given[i])] for i in range(24)]
    table = tmp_path / "m.csv"
    for lines, message in (
        ([["", *NAMES[::-1]], *rows], "in another order"),
        ([["", *NAMES], *[[row[0], *(cell.replace(".", ",") for cell in row[1:])] for row in rows]], "not a square"),
        ([["", *NAMES], [NAMES[0], "x", *rows[0][2:]], *rows[1:]], "'x' where a number is expected"),
        ([["", *[NAMES[0]] * 24], *[[NAMES[0], *row[1:]] for row in rows]], "has the image 0.png twice"),
        ([[";".join(row)] for row in rows], "m.csv"),
    ):
        table.write_text("\n".join(map(",".join, lines)) + "\n")
        assert message in error("similarity", file, table), message
    write(tmp_path / "nan.npz", fc7=np.where(features(1) > 2, np.nan, features(1)))
    assert "fc7: some features are missing or infinite" in error("similarity", tmp_path / "nan.npz")
    write(tmp_path / "my file.npz", relu5=features(1), fc7=features(2))
    assert set(alexnet.similarity([tmp_path / "my file.npz"], resamples=0)["names"]) == {"relu5", "fc7"}
    write(tmp_path / "twice.npz", (*NAMES[:-1], NAMES[0]), fc7=features(1))
    assert "has the image 0.png twice" in error("similarity", tmp_path / "twice.npz")
    same = np.ones((24, 24)) - np.eye(24)
    for matrix, message in ((given * 1j, "complex128 values"), (same, "for all pairs"), (np.float64(1), "single number")):
        np.save(tmp_path / "m.npy", matrix)
        assert message in error("similarity", file, tmp_path / "m.npy")
    np.save(tmp_path / "m.npy", np.array([{}]), allow_pickle=True)
    assert "pickle" not in error("similarity", file, tmp_path / "m.npy")


def test_similarity_command(tmp_path: Path) -> None:
    file = write(tmp_path / "f.npz", relu5=features(1), fc7=features(2))
    text = run("similarity", file, "--resamples", 10, "--out", tmp_path / "s.png").stdout
    assert "linear CKA" in text
    assert str(tmp_path / "s.png") in text
    assert json.loads(run("similarity", file, "--resamples", 10, "--json").stdout) == alexnet.similarity([file], resamples=10)


# Several seeds


def of_seeds(tmp_path: Path, count: int, noise: float = 1.0, images: int = 24) -> list[Path]:
    """Write two layers of networks with several seeds: what they share, and noise of their own."""
    names, files = tuple(f"{i}.png" for i in range(images)), list[Path]()
    for seed in range(count):
        random = np.random.default_rng(100 + seed)
        own = {
            name: features(i, count=images) + noise * random.normal(size=(images, 30))
            for i, name in enumerate(("relu5", "fc7"))
        }
        order = dict(reversed(own.items())) if seed % 2 else own  # as HDF5 files may have them
        files.append(write(tmp_path / f"{seed}.npz", names, **order))
    return files


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return float(np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)))


@pytest.mark.parametrize("count", [2, 4])
def test_similarity_over_seeds_is_the_mean_over_pairs_of_different_seeds(tmp_path: Path, count: int) -> None:
    """The reference is a plain loop in float64, with SciPy's dissimilarities and correlation."""
    files = of_seeds(tmp_path, count)
    result = alexnet.similarity(files, resamples=10, seeds=True)
    assert (result["names"], result["seeds"], result["images"]) == (["relu5", "fc7"], count, 24)
    arrays = [{layer: np.load(file)[layer].astype(np.float64) for layer in result["names"]} for file in files]
    for i, first in enumerate(result["names"]):
        for j, second in enumerate(result["names"]):
            ranks, ckas = [], []
            for one in range(count):
                for other in range(count):
                    if one != other:
                        x, y = arrays[one][first], arrays[other][second]
                        ranks.append(spearmanr(pdist(x, "correlation"), pdist(y, "correlation")).statistic)
                        ckas.append(linear_cka(x, y))
            assert result["rdm"]["values"][i][j] == pytest.approx(np.mean(ranks), abs=1e-10)
            assert result["cka"]["values"][i][j] == pytest.approx(np.mean(ckas), abs=1e-10)
            for key in ("rdm", "cka"):
                assert result[key]["low"][i][j] <= result[key]["high"][i][j]
    assert result["rdm"]["values"][0][0] > result["rdm"]["values"][0][1], "a layer is more like itself, also between seeds"


def test_drawn_seeds_count_as_often_as_they_are_drawn() -> None:
    values = np.random.default_rng(0).normal(size=(6, 6))
    values += values.T
    group, drawn = Seeds(3, ("a", "b")), [0, 0, 2]
    expected = [
        [np.mean([values[2 * one + i, 2 * other + j] for one in drawn for other in drawn if one != other]) for j in range(2)]
        for i in range(2)
    ]
    np.testing.assert_allclose(group.mean(values, np.bincount(drawn, minlength=3).astype(float)), expected, rtol=1e-12)
    assert np.isnan(group.mean(values, np.array([0.0, 3.0, 0.0]))).all(), "no two seeds differ"
    left = np.stack([group.mean(values, np.array(times, float)) for times in ((0, 1, 1), (1, 0, 1), (1, 1, 0))])
    error = np.sqrt(2 / 3 * ((left - left.mean(0)) ** 2).sum(0))
    np.testing.assert_allclose(group.half_width(values), student.ppf(0.975, 2) * error, rtol=1e-9)


@mostly_long("measure", ["rdm", "cka"], "cka")
def test_intervals_over_seeds_hold_for_new_images_and_seeds(measure: str) -> None:
    """40 samples of 30 images and 5 seeds; the truth is the mean over many such samples."""
    random, size, count = np.random.default_rng(0), 30, 5
    values, inside = [], []
    for trial in range(120):
        shared = random.normal(size=(size, 20))
        strength = random.uniform(0.4, 1.6, count)  # of a seed's own noise: some seeds are less alike than others
        own = [shared + s * random.normal(size=(size, 20)) for s in strength]
        group = Seeds(count, ("fc7",))
        if measure == "rdm":
            parts = [dissimilarities(x) for x in own]
            value, low, high = _rank_correlations(parts, 100 if trial < 40 else 0, group)
        else:
            value, low, high = _alignments([gram(x) for x in own], group, intervals=trial < 40)
        values.append(float(value[0, 0]))
        inside.append((float(low[0, 0]), float(high[0, 0])))
    truth = np.mean(values)
    assert sum(low <= truth <= high for low, high in inside[:40]) >= 34


def test_seeds_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    files = of_seeds(tmp_path, 2)
    assert "is of one seed: name a file for each seed" in error("similarity", files[0], "--seeds")
    same = tmp_path / "same.npz"
    same.write_bytes(files[0].read_bytes())
    for twice in (same, files[0]):
        given = error("similarity", files[0], twice, "--seeds")
        assert "has the same features as" in given or "is of one seed" in given
    write(tmp_path / "other.npz", relu5=features(9))
    assert "other.npz has the layers 'relu5', but" in error("similarity", *files, tmp_path / "other.npz", "--seeds")
    np.save(tmp_path / "m.npy", dissimilarities(features(5)))
    assert "m.npy is a dissimilarity matrix, not features of a seed" in error(
        "similarity", *files, tmp_path / "m.npy", "--seeds"
    )


def test_similarity_over_seeds_command(tmp_path: Path) -> None:
    files, figure = of_seeds(tmp_path, 3), tmp_path / "s.png"
    text = run("similarity", *files, "--seeds", "--resamples", 10, "--out", figure).stdout
    assert "24 images, 3 seeds" in text
    assert text.count("relu5  relu5") == 2
    with Image.open(figure) as image:
        assert min(image.size) > 300
    result = json.loads(run("similarity", *files, "--seeds", "--resamples", 10, "--json").stdout)
    assert result == alexnet.similarity(files, resamples=10, seeds=True)
    one = [write(tmp_path / f"one-{seed}.npz", fc7=features(seed)) for seed in range(2)]
    assert alexnet.similarity(one, figure, resamples=5, seeds=True)["names"] == ["fc7"]
