"""What a verb found, in the one form in which it is kept, shown on a page and read again.

    FOLDER/result.json      kind, schema version, identity, answers, notes, and the files beside it
    FOLDER/<table>.parquet  one file for each table

The JSON names each file with its checksum and its rows, and is written last: where it is,
everything is. It knows nothing of models, and of no kind what its tables mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, ValidationError

from moescope.errors import RunError
from moescope.files import claim, is_plain_name, owned, remove, write_bytes
from moescope.given import first_problem
from moescope.run.manifest import Stored
from moescope.run.store import read_parquet, write_parquet

RESULT = "result.json"
SCHEMA_VERSION = 1


class Tabular:
    """What was found, with one table that says most of it."""

    def to_arrow(self) -> pa.Table:
        """The table."""
        raise NotImplementedError

    def to_pandas(self) -> Any:
        """`to_arrow` as a data frame."""
        return self.to_arrow().to_pandas()


class Note(NamedTuple):
    """A line that limits what was found; ``warn`` where a reader would otherwise be misled."""

    level: Literal["warn", "note"]
    text: str


@dataclass(frozen=True)
class Result:
    """What was found.

    Attributes:
        kind: the verb's word for it, which is also the kind of its folder.
        identity: everything that decided the numbers.
        tables: by name.
        answers: sentences, the most important first.
        notes: what limits them.
        about: anything else that a page needs; JSON values.
    """

    kind: str
    identity: Mapping[str, Any]
    tables: Mapping[str, pa.Table]
    answers: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("identity", "about"):  # as they will be read again
            object.__setattr__(self, name, plain(getattr(self, name)))

    def save(self, folder: str | Path) -> Path:
        """Write the files; returns the folder. The same result gives the same bytes.

        Tables and JSON of an earlier result in the folder go.

        Raises:
            RunError: the folder holds something else.
            WriteError: disk full or no permission.
        """
        tables = {f"{name}.parquet": table for name, table in self.tables.items()}
        with claim(folder, self.kind) as target:
            remove(target / RESULT)  # while tables are exchanged there is no result
            for name in owned(target):
                if "/" not in name and name.endswith((".json", ".parquet")) and name not in tables:
                    remove(target / name)
            files = {
                name: {"sha256": write_parquet(target / name, table), "rows": table.num_rows}
                for name, table in tables.items()
            }
            head = {
                "kind": self.kind,
                "schema_version": SCHEMA_VERSION,
                "moescope": version("moescope"),
                "identity": self.identity,
                "answers": self.answers,
                "notes": [note._asdict() for note in self.notes],
                "about": self.about,
                "files": files,
            }
            text = json.dumps(head, indent=1, ensure_ascii=False, allow_nan=False)
            # a token may be half of a surrogate pair, which UTF-8 cannot hold
            write_bytes(target / RESULT, (text + "\n").encode("utf-8", "replace"))
            return target


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sha256: str
    rows: int


class ResultHead(BaseModel):
    """What stands in ``result.json``: all of a result but its tables."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    schema_version: Literal[1]
    moescope: str
    identity: dict[str, Any]
    answers: tuple[str, ...]
    notes: list[Note]
    about: dict[str, Any]
    files: dict[str, _File]


def refuse_finished(folder: str | Path | None, resume: bool = False) -> None:
    """Refuse to begin where a whole result lies.

    Raises:
        RunError: one lies there, and ``resume`` is off.
    """
    if folder is not None and not resume and (Path(folder) / RESULT).is_file():
        raise RunError(
            f"{folder} already holds a result; resume it, or give another folder, such "
            f"as `out={folder}-2`"
        )


def read_result(folder: str | Path, kind: str | None = None) -> Result:
    """Read what `Result.save` wrote, if it is still that.

    Args:
        folder: of the result.
        kind: that it must be of.

    Raises:
        RunError: no result, one of another kind or version, or a file that was changed.
    """
    where = Path(folder)
    path = where / RESULT
    head = _read_head(where, kind)
    if kind is not None and head.kind != kind:
        raise RunError(f"{where} holds a result of another kind ({head.kind}, not {kind})")
    odd = [n for n in head.files if not is_plain_name(n) or "/" in n or not n.endswith(".parquet")]
    if odd:
        raise RunError(f"{path} names a file {odd[0][:80]!r}, which is not a table; make it again")
    tables = {
        name.removesuffix(".parquet"): read_parquet(where, Stored(file=name, sha256=file.sha256))
        for name, file in head.files.items()
    }
    notes = tuple(head.notes)
    return Result(head.kind, head.identity, tables, head.answers, notes, head.about)


def results_in(folder: str | Path, **identity: Any) -> dict[str, ResultHead]:
    """The finished results in the folders of a folder, by the name of theirs, sorted.

    Such as those that were measured on a run and lie in it. What cannot be read is passed over;
    `read_result` says why.

    Args:
        folder: to look in; not in folders of its folders.
        identity: only results with these values, such as ``weights_sha256``.
    """
    found = {}
    for path in sorted(Path(folder).glob(f"*/{RESULT}")):
        try:
            head = _read_head(path.parent)
        except RunError:
            continue
        if all(head.identity.get(name) == value for name, value in identity.items()):
            found[path.parent.name] = head
    return found


def _read_head(where: Path, kind: str | None = None) -> ResultHead:
    path = where / RESULT
    try:
        return ResultHead.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(_nothing(where, kind)) from error
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise RunError(f"{path} is damaged ({first_problem(error)}); make it again") from error


def _nothing(where: Path, kind: str | None) -> str:
    older = [n for n in ("ablation", "similarity", "steering") if (where / f"{n}.json").is_file()]
    if older and kind in (None, *older):
        return f"{where} was made by an older moescope; run the same command again"
    what = f"a {kind}" if kind else "a result"
    return f"{where} holds no {RESULT}, so it is not {what}, or not a finished one"


def plain(value: Any, digits: int = 17) -> Any:
    """Any number, array, list, dict or named tuple as JSON values; what is not finite is None.

    Args:
        value: what is to be written.
        digits: significant ones that are kept of a float; all by default.

    Example:
        >>> plain({"a": (1 / 3, float("nan")), "b": Note("note", "few")}, 2)
        {'a': [0.33, None], 'b': {'level': 'note', 'text': 'few'}}
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [plain(v, digits) for v in value]
    if isinstance(value, Mapping):
        return {str(k): plain(v, digits) for k, v in value.items()}
    return value
