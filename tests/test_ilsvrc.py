"""ImageNet in each of the layouts in which it is published, made small."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from proof.pictures import encoded, picture

import alexnet
from alexnet.data import tars
from alexnet.data.ilsvrc import read_ilsvrc
from alexnet.data.imagenet import imagenet_classes
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.errors import DataError
from conftest import mostly_long

WNIDS = ("n01440764", "n02012849", "n03126707")  # a tench, a crane that flies and one that lifts: words that two classes share
# The kit numbers classes otherwise than by WordNet ID.
NUMBERS = {1: "n03126707", 2: "n01440764", 3: "n02012849"}
TRUTH = (2, 1, 3, 1, 2, 3)  # of the validation images, in order
TRAIN = {f"{wnid}/{wnid}_{i}.JPEG": encoded(picture(c, i, (20, 16)), "JPEG") for c, wnid in enumerate(WNIDS) for i in range(4)}
VAL = {f"ILSVRC2012_val_{i:08}.JPEG": encoded(picture(i % 2, 9 + i, (20, 16)), "JPEG") for i in range(1, 7)}
LABELS = {f"ILSVRC2012_val_{i:08}": NUMBERS[number] for i, number in enumerate(TRUTH, 1)}
NEEDS_LIST = "validation images, but not the list of their labels: put LOC_val_solution.csv"


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tar(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]  # it takes any mode
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def kit() -> dict[str, bytes]:
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    rows = [*((number, wnid, "some words", 0) for number, wnid in NUMBERS.items()), (4, "n00000000", "an inner node", 3)]
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"synsets": np.array(rows, dtype=kinds)[:, None]})
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    return {"data/ILSVRC2012_validation_ground_truth.txt": truth, "data/meta.mat": buffer.getvalue(), "readme.txt": b"x"}


def inside(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def solution() -> bytes:
    lines = (f"{name},{wnid} 1 2 3 4 {wnid} 5 6 7 8 " for name, wnid in sorted(LABELS.items(), reverse=True))
    return "\n".join(["ImageId,PredictionString", *lines, ""]).encode()


def archives(*, kit_packed: bool = True) -> dict[str, bytes]:
    classes = {f"{wnid}.tar": tar({Path(n).name: x for n, x in TRAIN.items() if n.startswith(wnid)}) for wnid in WNIDS}
    unpacked = inside("ILSVRC2012_devkit_t12", kit())
    labels = {"ILSVRC2012_devkit_t12.tar.gz": tar(unpacked, "w:gz")} if kit_packed else unpacked
    return {"ILSVRC2012_img_train.tar": tar(classes), "ILSVRC2012_img_val.tar": tar(VAL), **labels}


LAYOUTS: dict[str, Callable[[], dict[str, bytes]]] = {
    "archives": archives,
    "archives, kit unpacked": lambda: archives(kit_packed=False),
    "official, unpacked": lambda: {
        **inside("ILSVRC2012_img_train", TRAIN),
        **inside("ILSVRC2012_img_val", VAL),
        **inside("ILSVRC2012_devkit_t12", kit()),
    },
    "Kaggle": lambda: {
        **inside("ILSVRC/Data/CLS-LOC/train", TRAIN),
        **inside("ILSVRC/Data/CLS-LOC/val", VAL),
        "ILSVRC/Data/CLS-LOC/test/ILSVRC2012_test_00000001.JPEG": VAL["ILSVRC2012_val_00000001.JPEG"],
        "ILSVRC/Annotations/CLS-LOC/train/n01440764/n01440764_0.xml": b"<annotation/>",
        "LOC_val_solution.csv": solution(),
        "LOC_train_solution.csv": b"ImageId,PredictionString\n",
    },
    "train beside flat val": lambda: {**inside("train", TRAIN), **inside("val", VAL), "LOC_val_solution.csv": solution()},
    "torchvision": lambda: {
        **inside("train", TRAIN),
        **inside("val", {f"{LABELS[name[:-5]]}/{name}": content for name, content in VAL.items()}),
        "meta.bin": b"x",
    },
}


def images(table: Table) -> set[tuple[str, str, str, bytes]]:
    """The images of a table: file name, label, split and content."""
    found = set()
    for i, name in enumerate(table.images):
        source = table.source(i)
        content = source if isinstance(source, bytes) else Path(str(source)).read_bytes()
        found.add((Path(name).name, table.labels[table.targets[i]], str(table.splits[i]), content))
    return found


WANTED = {
    *((Path(name).name, imagenet_classes()[name[:9]], "train", content) for name, content in TRAIN.items()),
    *((name, imagenet_classes()[LABELS[name[:-5]]], "val", content) for name, content in VAL.items()),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_has_the_same_images(layout: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "imagenet", LAYOUTS[layout]())
    table = open_table(folder)
    assert images(table) == WANTED
    assert table.labels == ("crane", "crane bird", "tench")
    assert len(table) == len(TRAIN) + len(VAL)


@pytest.mark.parametrize("place", ["imagenet", "."])
def test_built_in_name(place: str, tmp_path: Path) -> None:
    write(tmp_path / place, LAYOUTS["archives"]())
    assert images(open_table("imagenet", tmp_path)) == WANTED
    with pytest.raises(DataError, match="must be downloaded by hand"):
        open_table("imagenet", tmp_path / "nowhere")


def test_kaggle_folder_inside(tmp_path: Path) -> None:
    write(tmp_path, LAYOUTS["Kaggle"]())
    assert images(open_table(tmp_path / "ILSVRC")) == WANTED


def test_secret_test_images_are_named_once(tmp_path: Path) -> None:
    skipped = open_table(write(tmp_path, LAYOUTS["Kaggle"]())).skipped
    assert [one.image for one in skipped] == ["ILSVRC/Data/CLS-LOC/test"]


def test_validation_alone(tmp_path: Path) -> None:
    table = open_table(write(tmp_path, {**inside("val", VAL), "LOC_val_solution.csv": solution()}))
    assert {image[:2] for image in images(table)} == {image[:2] for image in WANTED if image[2] == "val"}
    assert not (table.splits != "").any()


def test_counterexamples_beside_wordnet_ids(tmp_path: Path) -> None:
    files = {**TRAIN, **{f"none/{i}.JPEG": TRAIN["n01440764/n01440764_0.JPEG"] for i in range(3)}}
    table = open_table(write(tmp_path, files))
    assert table.labels == ("crane", "crane bird", "tench")
    assert table.unknown is not None
    assert len(table.unknown) == 3


def test_missing_and_unlisted_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {**LAYOUTS["train beside flat val"](), "val/ILSVRC2012_val_00000077.JPEG": b"x"}
    del files["val/ILSVRC2012_val_00000003.JPEG"]
    table = open_table(write(tmp_path, files))
    assert [tuple(one) for one in table.skipped] == [("val/ILSVRC2012_val_00000077.JPEG", "not in LOC_val_solution.csv")]
    assert "lists 6 images, of which 5 are here" in capsys.readouterr().err


DAMAGED: dict[str, tuple[str, Callable[[dict[str, bytes]], object], str]] = {
    "no list": ("official, unpacked", lambda f: [f.pop(name) for name in list(f) if "devkit" in name], NEEDS_LIST),
    "no list, archives": ("archives", lambda f: f.pop("ILSVRC2012_devkit_t12.tar.gz"), NEEDS_LIST),
    "kit cut": (
        "archives",
        lambda f: f.update({"ILSVRC2012_devkit_t12.tar.gz": f["ILSVRC2012_devkit_t12.tar.gz"][:200]}),
        "ILSVRC2012_devkit_t12.tar.gz is not the list",
    ),
    "kit without a table": (
        "official, unpacked",
        lambda f: f.update({"ILSVRC2012_devkit_t12/data/meta.mat": b"x" * 200}),
        "ground_truth.txt is not the list",
    ),
    "solution without columns": ("Kaggle", lambda f: f.update({"LOC_val_solution.csv": b"a,b\n1,2\n"}), "is not the list"),
    "solution with words": (
        "Kaggle",
        lambda f: f.update({"LOC_val_solution.csv": b"ImageId,PredictionString\nILSVRC2012_val_00000001,cat 1\n"}),
        "'cat' is not a WordNet ID",
    ),
    "archive cut": (
        "archives",
        lambda f: f.update({"ILSVRC2012_img_val.tar": f["ILSVRC2012_img_val.tar"][:1500]}),
        "ILSVRC2012_img_val.tar is cut off",
    ),
    "archive within the archive cut": (
        "archives",
        lambda f: f.update({"ILSVRC2012_img_train.tar": tar({"n01440764.tar": tar({"a.JPEG": b"x" * 5000})[:3000]})}),
        "n01440764.tar is cut off",
    ),
    "not an archive": ("archives", lambda f: f.update({"ILSVRC2012_img_train.tar": b"x" * 5000}), "not a tar archive"),
    "classes still packed": (
        "official, unpacked",
        lambda f: [
            *(f.pop(name) for name in list(f) if name.startswith("ILSVRC2012_img_train")),
            f.update({"ILSVRC2012_img_train/n01440764.tar": tar({"n01440764_0.JPEG": b"x"})}),
        ],
        "has no folders named by WordNet IDs: unpack each",
    ),
    "half unpacked": (
        "archives",
        lambda f: [f.pop("ILSVRC2012_img_train.tar"), f.update(inside("ILSVRC2012_img_train", TRAIN))],
        "one part of ImageNet as an archive and the other unpacked",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(case: str, tmp_path: Path) -> None:
    layout, change, message = DAMAGED[case]
    files = LAYOUTS[layout]()
    change(files)
    with pytest.raises(DataError, match=message) as raised:
        open_table(write(tmp_path, files))
    assert "\n" not in str(raised.value)


def test_archive_that_changed(tmp_path: Path) -> None:
    table = open_table(write(tmp_path, LAYOUTS["archives"]()))
    (tmp_path / "ILSVRC2012_img_val.tar").write_bytes(b"")
    row = int(table.rows("val")[0])
    with pytest.raises(DataError, match="has changed"):
        table.source(row)


def test_other_folders_are_not_imagenet(tmp_path: Path) -> None:
    write(tmp_path, {f"{label}/{i}.jpg": next(iter(VAL.values())) for label in ("val", "train") for i in range(3)})
    assert read_ilsvrc(tmp_path) is None


def test_members_are_where_they_say(tmp_path: Path) -> None:
    files = {f"a/{'long name ' * n}{n}.jpg": bytes([n]) * (n * 300) for n in range(30)}
    (tmp_path / "a.tar").write_bytes(tar(files))
    archive = tars.Tar(str(tmp_path / "a.tar"))
    assert {member.name: archive.read((member.start, member.size)) for member in archive.members()} == files


@mostly_long("labels", [WNIDS, tuple(imagenet_classes()[wnid] for wnid in WNIDS)], WNIDS)
def test_run_with_wordnet_ids(labels: tuple[str, ...], tmp_path: Path) -> None:
    """A run whose labels are WordNet IDs, as those of earlier versions, evaluates the same images as one that has words."""
    data = write(tmp_path / "imagenet", LAYOUTS["archives"]())
    torch.manual_seed(0)
    network = alexnet.AlexNet("owt", 3)
    layers = {theirs: network.layers[ours] for theirs, ours in network.torchvision_names.items()}
    state = {f"{theirs}.{kind}": x for theirs, layer in layers.items() for kind, x in layer.state_dict().items()}
    torch.save(state, tmp_path / "weights.pth")
    run = alexnet.load(alexnet.import_weights(tmp_path / "weights.pth", out=tmp_path / "run", classes=labels), device="cpu")
    evaluation = run.evaluate(data, split="val")
    assert [run.labels[target] for target in evaluation.targets] == [labels[WNIDS.index(wnid)] for wnid in LABELS.values()]
