"""What makes an exported set a dataset repository of the Hugging Face Hub: a table of its rows, and the head of its card."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from mkdt import artifacts
from mkdt.distill.synthetic_set import SyntheticSet

ROWS = "train.parquet"
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def write_rows(tiny: SyntheticSet, path: Path) -> None:
    """Write one row an image: ``image`` float32 [C,H,W], normalised, and ``targets`` float32 [V,D], one of each view."""
    targets = tiny.targets.unflatten(0, (len(tiny.views), len(tiny))).transpose(0, 1)
    table = pa.table({"image": _nested(tiny.images), "targets": _nested(targets)})
    artifacts.write_atomically(path, lambda file: pq.write_table(table, file, compression="zstd"))


def _nested(values: Tensor) -> pa.Array:
    """Return float32 [n,a,b,...] as n lists of a lists of b ... numbers."""
    array = pa.array(values.contiguous().flatten().numpy())
    for size in reversed(values.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def front_matter(tiny: SyntheticSet, noun: str, name: str, terms: str) -> str:
    """Return the metadata at the head of the card, as YAML between two lines of dashes.

    Args:
        tiny: the set.
        noun: what its images are, ``real`` or ``distilled``.
        name: of the source, for the card's title.
        terms: of the source's images, in words.
    """
    size = next((label for most, label in SIZES.items() if len(tiny) < most), "n>1M")
    values = {
        "pretty_name": f"{len(tiny)} {noun} images, from {name}",
        "license": "other",
        "license_name": "terms-of-the-source",
        "license_details": terms,
        "task_categories": ["image-feature-extraction"],
        "size_categories": [size],
        "tags": ["dataset-distillation", "self-supervised-learning", "knowledge-distillation", "mkdt"],
        "configs": [{"config_name": "default", "data_files": ROWS}],
    }
    lines = (f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items())
    return f"---\n{''.join(lines)}---\n"
