"""What the names of folders and files say: a split, or a label."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

# What people call the splits: the words of Hugging Face's `datasets` and a few more; below them German, Romance languages,
# Chinese and Japanese, without accents.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout"), "test"),
    **dict.fromkeys(("entrainement", "apprentissage", "entrenamiento", "treino", "addestramento"), "train"),
    **dict.fromkeys(("训练", "訓練", "学習"), "train"),
    **dict.fromkeys(("validierung", "validacion", "validacao", "validazione", "验证", "検証"), "val"),
    **dict.fromkeys(("prueba", "teste", "测试", "テスト"), "test"),
}
# Words that say nothing beside these: `training_set`, `val_images`, `TestData`, `train2017`.
NEUTRAL = (
    *("set", "data", "dataset", "images", "image", "imgs", "img", "photos"),
    *("pictures", "pics", "split", "folder", "dir", "daten", "sdaten", "集"),
)
GLUED = re.compile(rf"({'|'.join(SPLIT_WORDS)})({'|'.join(NEUTRAL)})s?")
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+")

# `cat.17.jpg`, `cat_0017.png`, `cat-17.jpg`, `cat#17.jpg`, `cat (17).jpg`, `cat[17].jpg`: a label, then a number.
LABEL = re.compile(r"(?P<label>.*?[^\W\d_].*?)[\s._#~=@,-]*[(\[]?\d+[)\]]?$")
CAMERAS = ("dsc", "dscn", "dscf", "pxl", "mvimg", "wa", "e", "screenshot", "photo", "scan", "file", "frame")
# Words that cameras, phones and programs begin names with; these are no labels, nor are those of splits.
NO_LABELS = {*SPLIT_WORDS, *NEUTRAL, *CAMERAS}


def split_of_folder(name: str) -> tuple[str, str]:
    """Return the split that a folder's name says, or nothing, and the words beside: `seg_train` is (`train`, `seg`)."""
    words = []
    plain = "".join(char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char))
    for word in (word.lower() for word in WORDS.findall(plain)):
        glued = GLUED.fullmatch(word)
        words += [glued[1]] if glued else [word]
    if "hold" in words and "out" in words:
        words = ["holdout", *(word for word in words if word not in ("hold", "out"))]
    said = [word for word in words if word in SPLIT_WORDS]
    beside = " ".join(word for word in words if word not in SPLIT_WORDS and word not in NEUTRAL)
    return (SPLIT_WORDS[said[0]], beside) if len(said) == 1 else ("", beside)


def no_classes(labels: Iterable[str]) -> str:
    """Return why the labels in files' names are no classes; nothing if they may be.

    `Train_1.jpg` and `Test_1.jpg`, `IMG_1.jpg` and `DSC_1.jpg` say none, nor do hashes and times.
    """
    counts = Counter(labels)
    # A single letter is a class: a sign, a grade.
    if counts and all(len(label) > 1 and {word.lower() for word in WORDS.findall(label)} <= NO_LABELS for label in counts):
        return "its name begins with a word that says no class"
    numbered = sum(any(map(str.isdigit, label)) for label in counts)
    different = len(counts) > 2 and 2 * len(counts) > counts.total()
    return "its name is a number, a time or a hash" if different and 2 * numbered > len(counts) else ""
