"""What the readers of all engines share: one request as it was served, and how arrays are spelt.

A capture file is data of unknown origin: nothing is unpickled, no array is believed before its
size is checked, and what cannot be used is described in one line with its place.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from moescope.corpus.records import Problem
from moescope.trace.importers.served import ServedModel
from moescope.words import listing, one_line, said_by

MAX_TOKENS = 1 << 24
"""Of one request: far more than any model reads, few enough to hold."""

MAX_ARRAY_BYTES = 2 << 30
"""Of one array that a packed file declares, before it is unpacked."""

OTHER_MODEL = "give the model that was served by `model`"
"""Advice where a capture does not fit the model."""

_DTYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "int64")
_MAX_TOKEN = 1 << 24
_STARTS = ("start", "routed_experts_start_len", "routed_experts_prompt_start")


class RefusedError(Exception):
    """One request that cannot be used; whether that ends the import is for others to decide."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message())
        self.problem = problem


def refuse(reason: str, where: str, detail: str, advice: str = "") -> NoReturn:
    """Raise a `RefusedError`: a few words of the same kind, the place, what was found, what to do.

    Raises:
        RefusedError: always.
    """
    raise RefusedError(Problem(reason, where, one_line(detail, 400), advice))


class Item(NamedTuple):
    """One entry of a capture file.

    Attributes:
        where: how messages call it.
        place: the id that its position gives it.
        values: its fields; arrays where the file holds arrays.
        bytes_read: of the file, up to the end of this entry.
    """

    where: str
    place: str
    values: Mapping[str, Any]
    bytes_read: int


class Request(NamedTuple):
    """One request that an engine served, as the engine gave it; nothing is checked yet.

    Shapes: P tokens of the prompt, N generated, R rows of routing, S layer slots, K experts.

    Attributes:
        where: how messages call it.
        doc_id: its id.
        domain: its domain.
        prompt_ids: (P,); −1 where an id was not saved.
        output_ids: (N,) likewise.
        experts: (R, S, K), in the engine's order.
        start: position of the first row.
        counted: (P + N,) or (P,), which tokens count; None when the capture has no mask.
        slots: the model's own numbers of the S layers, or None: then S tells (all decoder layers,
            or all MoE layers).
        all_fed: the last token was fed to the model too, so it has a row.
    """

    where: str
    doc_id: str
    domain: str
    prompt_ids: NDArray[np.int64]
    output_ids: NDArray[np.int64]
    experts: NDArray[Any]
    start: int
    counted: NDArray[np.bool_] | None
    slots: tuple[int, ...] | None = None
    all_fed: bool = False

    @property
    def num_tokens(self) -> int:
        """Tokens read and written."""
        return int(self.prompt_ids.size + self.output_ids.size)


def label_of(item: Item, default_domain: str | None) -> tuple[str, str]:
    """The id and the domain of an entry; without an id its place in the file.

    Raises:
        RefusedError: no domain, a reserved one, or an id that is not text.
    """
    given = item.values.get("id")
    given = item.place if given is None or given == "" else given
    if isinstance(given, bool) or not isinstance(given, str | int):
        refuse("id is not a string", item.where, f"got {type(given).__name__}")
    value = item.values.get("domain")
    if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
        refuse("domain is not a string", item.where, f"got {type(value).__name__}")
    domain = " ".join(str(value or "").split()) or default_domain
    if not domain:
        fields = listing(item.values)
        refuse("no domain in field 'domain'", item.where, f"its fields: {fields}",
               "use `domain=LABEL` to give all requests one")  # fmt: skip
    if domain == "all":
        refuse("the domain 'all' is reserved", item.where, "it is the name of the total")
    for name, text in (("id", str(given)), ("domain", domain)):
        if any("\ud800" <= c <= "\udfff" for c in text):
            refuse("not valid Unicode", item.where, f"{name}: half of a surrogate pair")
    return str(given), domain


def token_ids(value: Any, name: str, where: str, served: ServedModel) -> NDArray[np.int64]:
    """A list of token ids, each inside the model's vocabulary.

    Raises:
        RefusedError: anything else.
    """
    made = whole_numbers(value, name, where)
    if made.ndim != 1:
        refuse(f"{name} is not a list", where, f"got {made.ndim} axes, expected 1")
    if not made.size:
        return np.zeros(0, np.int64)
    size = served.vocab_size or _MAX_TOKEN
    if int(made.min()) < 0 or int(made.max()) >= size:
        bad = int(made.min()) if int(made.min()) < 0 else int(made.max())
        refuse(f"{name} is outside the vocabulary", where, f"got {bad}, expected 0 to {size - 1}",
               OTHER_MODEL)  # fmt: skip
    return made.astype(np.int64)


def start_of(values: Mapping[str, Any], where: str) -> int:
    """Position of the first row of routing: 0, or what was asked of the engine.

    Raises:
        RefusedError: it is not a position.
    """
    for name in _STARTS:
        value = values.get(name)
        if value is None:
            continue
        value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
        whole = value if isinstance(value, int) and not isinstance(value, bool) else -1
        if not 0 <= whole < MAX_TOKENS:
            refuse(f"{name} is not a position", where, f"got {value!r}")
        return whole
    return 0


def counted_mask(values: Mapping[str, Any], where: str) -> NDArray[np.bool_] | None:
    """The field ``counted``: which tokens stand for text, one truth value for each.

    Raises:
        RefusedError: it is not a list of truth values.
    """
    value = values.get("counted")
    if value is None:
        return None
    made = _array(value, "counted", where)
    if made.ndim != 1 or not np.isin(made, (0, 1)).all():
        refuse("counted is not a mask", where, "expected one true or false for each token")
    return made.astype(np.bool_)


def prompt_ids_of(
    values: Mapping[str, Any], where: str, served: ServedModel, names: tuple[str, ...]
) -> NDArray[np.int64] | None:
    """The prompt's token ids, from one of these fields, or from the field ``prompt`` by tokenizing.

    Raises:
        RefusedError: no ids, or text without a tokenizer.
    """
    for name in names:
        if values.get(name) is not None:
            return token_ids(values[name], name, where, served)
    text = values.get("prompt")
    if text is None:
        return None
    if not isinstance(text, str):
        refuse("prompt is not a text", where, f"got {type(text).__name__}")
    if any("\ud800" <= c <= "\udfff" for c in text):
        refuse("prompt is not valid Unicode", where, "half of a surrogate pair")
    if served.tokenizer is None:
        refuse("a prompt without token ids", where, "the model has no tokenizer here",
               "save prompt_token_ids")  # fmt: skip
    made = served.tokenizer(text, truncation=False, padding=False, verbose=False)["input_ids"]
    return np.asarray(made, np.int64)


def expert_array(value: Any, where: str) -> NDArray[Any]:
    """The field ``routed_experts`` in any of its spellings, as whole numbers.

    An array; nested lists; ``{"data": base64, "dtype": "uint8", "shape": [T, L, K]}``; or base64 of
    a whole ``.npy`` file, as vLLM's server writes it.

    Raises:
        RefusedError: none of these, or cut short.
    """
    name = "routed_experts"
    if value is None:
        refuse(f"no {name}", where, "the field is missing or null",
               "start the engine with routed experts on; an aborted request has none (leave it out "
               "by `on_error=skip`)")  # fmt: skip
    if isinstance(value, str):
        return _npy(unpacked(value, name, where), where)
    if isinstance(value, Mapping):
        return _packed(value, where)
    return whole_numbers(value, name, where)


def unpacked(text: Any, name: str, where: str) -> bytes:
    """Bytes of a base64 text.

    Raises:
        RefusedError: it is not base64, or cut short.
    """
    if not isinstance(text, str):
        refuse(f"{name} is not base64", where, f"got {type(text).__name__}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        refuse(f"{name} is not base64", where, f"{error}; {len(text)} characters",
               "it was cut short or altered; capture it again")  # fmt: skip


def _packed(value: Mapping[str, Any], where: str) -> NDArray[Any]:
    missing = [key for key in ("data", "dtype", "shape") if key not in value]
    if missing:
        refuse("routed_experts is incomplete", where, f"no {listing(missing)} beside the data",
               'expected {"data": base64, "dtype": "uint8", "shape": [T, L, K]}')  # fmt: skip
    dtype, shape = value["dtype"], value["shape"]
    if dtype not in _DTYPES:
        refuse("routed_experts has an unknown dtype", where, f"got {dtype!r}",
               f"expected one of {', '.join(_DTYPES)}")  # fmt: skip
    sizes = whole_numbers(shape, "shape", where).tolist() if shape else []
    if np.ndim(sizes) != 1 or len(sizes) != 3 or min(sizes) < 0:
        refuse("routed_experts has no shape of three axes", where, f"got {shape!r}")
    data = unpacked(value["data"], "routed_experts", where)
    kind = np.dtype(dtype).newbyteorder("<")
    expected = math.prod(sizes) * kind.itemsize
    if len(data) != expected:
        refuse("routed_experts is cut short", where,
               f"got {len(data):,} bytes, expected {expected:,} for {sizes} of {dtype}",
               "capture it again")  # fmt: skip
    return np.frombuffer(data, kind).reshape(sizes)


def _npy(data: bytes, where: str) -> NDArray[Any]:
    try:
        expected, found = npy_bytes(io.BytesIO(data)), len(data)
        if expected > found:
            raise ValueError(f"its header declares {expected:,} bytes, it has {found:,}")
        made = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # whatever numpy says of bytes of unknown origin
        refuse("routed_experts is not an .npy array", where, said_by(error, 120),
               "expected base64 of a .npy file, or data, dtype and shape")  # fmt: skip
    return whole_numbers(made, "routed_experts", where)


def npy_bytes(stream: Any) -> int:
    """The bytes that the header of a ``.npy`` file declares for its numbers; nothing is unpacked.

    Raises:
        ValueError: it is none, or holds Python objects.
    """
    form: Any = np.lib.format
    major, _ = form.read_magic(stream)
    read = form.read_array_header_1_0 if major == 1 else form.read_array_header_2_0
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read")
    return int(math.prod(shape) * dtype.itemsize)


def whole_numbers(value: Any, name: str, where: str) -> NDArray[Any]:
    """A regular array of whole numbers.

    Raises:
        RefusedError: it is none.
    """
    made = _array(value, name, where)
    if made.dtype == np.bool_:
        refuse(f"{name} holds something else than whole numbers", where, "got truth values")
    return made


def _array(value: Any, name: str, where: str) -> NDArray[Any]:
    """Whole numbers or truth values in a regular array; an empty list is one of no entries."""
    if not isinstance(value, list | tuple | np.ndarray):
        refuse(f"{name} is not an array", where, f"got {type(value).__name__}")
    try:
        made = np.asarray(value)
    except (ValueError, OverflowError) as error:
        refuse(f"{name} is ragged", where, said_by(error, 120))
    if made.size and made.dtype.kind not in "iub":
        refuse(f"{name} holds something else than whole numbers", where, f"got {made.dtype}")
    return made if made.size else made.astype(np.int64)
