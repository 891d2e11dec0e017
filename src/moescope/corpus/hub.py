"""Hugging Face datasets as records: by name, or a folder that ``save_to_disk`` wrote.

Needs the extra ``hub``. A dataset by name is streamed, never downloaded whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moescope.corpus.records import Fields, Problem, Record, corpus_error
from moescope.corpus.spec import HUB_PREFIX
from moescope.corpus.tables import require_column
from moescope.errors import MissingExtraError
from moescope.hub import why_unreachable
from moescope.words import near_names, said_by


def is_saved_dataset(path: Path) -> bool:
    """Tell a folder that ``save_to_disk`` wrote from a folder of texts."""
    try:
        return (path / "dataset_dict.json").is_file() or (
            (path / "dataset_info.json").is_file() and (path / "state.json").is_file()
        )
    except (OSError, ValueError):  # a name that is too long, or no name of a file
        return False


def read_dataset(
    path: str, fields: Fields, split: str, config: str | None
) -> Iterator[Record | Problem]:
    """Read one split of a dataset; rows are numbered from 0.

    A column of class labels gives the names of the classes rather than their numbers.

    Args:
        path: ``hf:owner/name``, or the folder of a saved dataset.
        fields: the columns to read.
        split: the split to read; a saved dataset without splits ignores it.
        config: the configuration, for a dataset that has several.

    Raises:
        CorpusError: the dataset cannot be loaded, or lacks the split or the text column.
        MissingExtraError: the package ``datasets`` is not installed.
    """
    dataset = _load(path, split, config)
    name = path.removeprefix(HUB_PREFIX) if path.startswith(HUB_PREFIX) else Path(path).name
    columns = list(dataset.column_names or [])
    if columns:
        require_column(path, columns, fields)
        dataset = dataset.select_columns([c for c in dict.fromkeys(fields) if c in columns])
    classes = getattr((dataset.features or {}).get(fields.domain), "names", None)
    rows, row = iter(dataset), 0
    while True:
        try:
            values = next(rows, None)
        except Exception as error:  # decoding, network and format errors of many libraries
            raise corpus_error(
                f"{path}: reading stopped at row {row} ({_reason(error)}); try again, or save "
                "the dataset as .parquet and give that file"
            ) from error
        if values is None:
            return
        label = values.get(fields.domain)
        if classes and isinstance(label, int) and 0 <= label < len(classes):
            values = {**values, fields.domain: classes[label]}
        yield Record(f"{name}:{row}", f"{path}:row {row}", values, columns or values.keys())
        row += 1


def _load(path: str, split: str, config: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub", "reading a Hugging Face dataset") from error
    if path.startswith(HUB_PREFIX) and (why := why_unreachable()) is not None:
        raise corpus_error(
            f"{path}: the hub cannot be asked for it ({why}); give a file or folder of texts, or "
            "try again with a network"
        )
    try:
        if path.startswith(HUB_PREFIX):
            name = path.removeprefix(HUB_PREFIX)
            return datasets.load_dataset(name, config, split=split, streaming=True)
        loaded = datasets.load_from_disk(path)
    except Exception as error:  # every dataset and every network has its own
        raise corpus_error(
            f"{path}: the dataset cannot be loaded ({_reason(error)}); check its name, its "
            f"split ({split!r}) and its configuration ({config or 'none given'})"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict):
        return loaded
    if split not in loaded:
        raise corpus_error(
            f"{path}: the dataset has no split {split!r}; {near_names(split, loaded)}"
        )
    return loaded[split]


def _reason(error: Exception) -> str:
    return said_by(error, 200)
