"""CSV and Parquet listings for tests: made, opened and described."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from proof.pictures import encoded, picture

from alexnet.data.csv_reader import MISSING, WHOLE
from alexnet.data.labels import normalize_label
from alexnet.data.sources import open_table
from alexnet.data.table import Table
from alexnet.errors import DataError

# Characters allowed in a name or a label: all except those that are stripped or refused.
WORDS = st.text(
    st.characters(
        exclude_categories=("Cs", "Cc"), exclude_characters="\\/:~\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    ),
    min_size=1,
    max_size=12,
).filter(lambda text: text == text.strip() and text not in (".", ".."))
LABELS = st.sampled_from(["cat", "dog"]) | WORDS.map(normalize_label).filter(
    lambda label: label and label != "none" and label not in MISSING and not WHOLE.fullmatch(label)
)
TABLES = st.lists(st.tuples(WORDS, LABELS), min_size=2, max_size=12, unique_by=lambda row: row[0])
PNG = [encoded(picture(i % 2, i, (12, 12)), "PNG") for i in range(8)]


def listing(table: Table) -> set[tuple[str, str, str]]:
    return {(table.images[i], table.labels[table.targets[i]], str(table.splits[i])) for i in range(len(table))}


def opened(path: Path, content: str | bytes) -> Table:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_table(path)


def refusal(path: Path, content: str | bytes) -> str:
    """Return the one-line error for a file that cannot be read."""
    with pytest.raises(DataError) as caught:
        opened(path, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500 + len(str(path))
    return str(caught.value)


def parquet_file(path: Path, columns: dict[str, Any], metadata: dict[str, str] | None = None, **options: Any) -> Path:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table(columns)
    pq.write_table(table.replace_schema_metadata(metadata) if metadata else table, path, **options)
    return path


def labels_of(tmp_path: Path, column: Any, metadata: dict[str, str] | None = None) -> list[str]:
    """Return the labels that a Parquet file gives images 0.png, 1.png …, and `no label` for those left out."""
    names = [f"{i}.png" for i in range(len(column))]
    table = open_table(parquet_file(tmp_path / "a.parquet", {"image": names, "label": column}, metadata))
    result = {image: label for image, label, _ in listing(table)} | {image: reason for image, reason in table.skipped}
    return [result[name] for name in names]
