"""Find splits in folder names and labels in file names."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

# Common names of splits: those of Hugging Face's `datasets` and a few more, then German, the Romance languages, Chinese and
# Japanese, without accents.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "eval", "evaluation", "holdout"), "test"),
    **dict.fromkeys(("entrainement", "apprentissage", "entrenamiento", "treino", "addestramento"), "train"),
    **dict.fromkeys(("训练", "訓練", "学習"), "train"),
    **dict.fromkeys(("validierung", "validacion", "validacao", "validazione", "验证", "検証"), "val"),
    **dict.fromkeys(("prueba", "teste", "测试", "テスト"), "test"),
}
# Words ignored beside the name of a split: `training_set`, `val_images`, `TestData`, `train2017`.
NEUTRAL = (
    *("set", "data", "dataset", "images", "image", "imgs", "img", "photos"),
    *("pictures", "pics", "split", "folder", "dir", "daten", "sdaten", "集"),
)
GLUED = re.compile(rf"({'|'.join(SPLIT_WORDS)})({'|'.join(NEUTRAL)})s?")
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+")

# `cat.17.jpg`, `cat_0017.png`, `cat-17.jpg`, `cat#17.jpg`, `cat (17).jpg`, `cat[17].jpg`: a label, then a number.
LABEL = re.compile(r"(?P<label>.*?[^\W\d_].*?)[\s._#~=@,-]*[(\[]?\d+[)\]]?$")
CAMERAS = ("dsc", "dscn", "dscf", "pxl", "mvimg", "wa", "e", "screenshot", "photo", "scan", "file", "frame")
# Words at the start of file names that are not labels.
NO_LABELS = {*SPLIT_WORDS, *NEUTRAL, *CAMERAS}


def split_of_folder(name: str) -> tuple[str, str]:
    """Return the split in a folder's name, empty if there is none, and the other words: `seg_train` -> (`train`, `seg`)."""
    words = []
    plain = "".join(char for char in unicodedata.normalize("NFKD", name) if not unicodedata.combining(char))
    for word in (word.lower() for word in WORDS.findall(plain)):
        glued = GLUED.fullmatch(word)
        words += [glued[1]] if glued else [word]
    if "hold" in words and "out" in words:
        words = ["holdout", *(word for word in words if word not in ("hold", "out"))]
    splits = [word for word in words if word in SPLIT_WORDS]
    others = " ".join(word for word in words if word not in SPLIT_WORDS and word not in NEUTRAL)
    return (SPLIT_WORDS[splits[0]], others) if len(splits) == 1 else ("", others)


def why_not_labels(labels: Iterable[str]) -> str:
    """Return why words in file names cannot be class labels; empty if they can.

    The words of `Train_1.jpg` and `Test_1.jpg`, or of `IMG_1.jpg` and `DSC_1.jpg`, are not labels, nor are hashes and times.
    """
    counts = Counter(labels)
    # A single letter can be a class, such as a hand sign or a grade.
    if counts and all(len(label) > 1 and {word.lower() for word in WORDS.findall(label)} <= NO_LABELS for label in counts):
        return "its name begins with a word that is not a class"
    numbered = sum(any(map(str.isdigit, label)) for label in counts)
    mostly_unique = len(counts) > 2 and 2 * len(counts) > counts.total()
    return "its name is a number, a time or a hash" if mostly_unique and 2 * numbered > len(counts) else ""
