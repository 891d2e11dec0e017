"""Models that are not what they should be: configuration, tokenizer, weights, index, folder."""

import functools
import json
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.cli.bad import Case, case
from tests.support.saved import save_tiny

_INSPECT = ("inspect m",)
_TRACE = (
    "trace m TEXTS -o r --engine resident",
    "trace m TEXTS -o r --engine streamed",
)
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"


@functools.cache
def _stock() -> dict[str, bytes]:
    """The files of a tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        saved = save_tiny("olmoe", Path(folder) / "m")
        return {path.name: path.read_bytes() for path in saved.iterdir()}


def _model(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def prepare(here: Path) -> None:
        (here / "m").mkdir()
        for name, content in _stock().items():
            (here / "m" / name).write_bytes(content)
        change(here / "m")

    return prepare


def _settings(**changes: Any) -> Callable[[Path], None]:
    return _keys("config.json", **changes)


def _keys(file: str, **changes: Any) -> Callable[[Path], None]:
    """A JSON file of the model with other keys."""

    def change(folder: Path) -> None:
        stored = json.loads(_stock()[file])
        (folder / file).write_text(json.dumps({**stored, **changes}), encoding="utf-8")

    return change


def _content(file: str, content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        new = content if isinstance(content, bytes) else content(_stock()[file])
        (folder / file).write_bytes(new)

    return change


def _header(**changes: Any) -> Callable[[bytes], bytes]:
    """The weights with another header entry of one tensor; the numbers stay."""

    def change(stored: bytes) -> bytes:
        size = struct.unpack("<Q", stored[:8])[0]
        header = json.loads(stored[8 : 8 + size])
        name = next(n for n in header if n.endswith("0.up_proj.weight"))
        header[name] |= changes
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + stored[8 + size :]

    return change


def _indexed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """The weights as a shard of an index."""

    def prepare(folder: Path) -> None:
        (folder / _WEIGHTS).rename(folder / "a.safetensors")
        stored = _stock()[_WEIGHTS]
        header = json.loads(stored[8 : 8 + struct.unpack("<Q", stored[:8])[0]])
        names = dict.fromkeys((n for n in header if n != "__metadata__"), "a.safetensors")
        (folder / _INDEX).write_text(json.dumps(change(names)), encoding="utf-8")

    return prepare


def _each(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for one in changes:
            one(folder)

    return change


def _replaced(file: str, how: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        how(folder / file)

    return change


def _cases(
    commands: tuple[str, ...], faults: dict[str, tuple[Callable[[Path], None], str]]
) -> list[Case]:
    return [
        case(f"{name} ({words.split()[-1]})", words, says, prepare=_model(change))
        for name, (change, says) in faults.items()
        for words in commands
    ]


_CONFIG = {
    "a size in quotes": (_settings(hidden_size="32"), "config.json: hidden_size is \"32\""),
    "a list for a size": (_settings(num_experts=[8]), "num_experts is [8]"),
    "null for a size": (_settings(num_hidden_layers=None), "num_hidden_layers is null"),
    "a broken size": (_settings(vocab_size=0.5), "vocab_size is 0.5"),
    "a size that is not a number": (_settings(hidden_size=float("nan")), "hidden_size is NaN"),
    "a size of 0": (_settings(hidden_size=0), "hidden_size is 0, expected a number from 1"),
    "a size below 0": (_settings(num_attention_heads=-4), "num_attention_heads is -4"),
    "a giant size": (_settings(hidden_size=10**9), "hidden_size is 1000000000"),
    "a size of 31 digits": (_settings(vocab_size=10**30), "a number of more than 18 digits"),
    "200,000 layers": (_settings(num_hidden_layers=200_000), "from 1 to 1,000"),
    "a million experts": (_settings(num_experts=10**6), "num_experts is 1000000"),
    "more choices than experts": (_settings(num_experts_per_tok=9), "does not answer"),
    "a giant list of labels": (_settings(num_labels=10**9), "num_labels is 1000000000"),
    "an unknown dtype": (_settings(dtype="float99"), 'dtype is "float99"'),
    "a number for a dtype": (_settings(dtype=7), "dtype is 7"),
    "an unknown activation": (_settings(hidden_act="swash"), 'hidden_act is "swash"'),
    "a rotary base in quotes": (
        _settings(rope_parameters={"rope_type": "default", "rope_theta": "x"}),
        "rope_parameters.rope_theta"),
    "an unknown rotary type": (
        _settings(rope_parameters={"rope_type": "swing", "rope_theta": 1e4}),
        "rope_parameters.rope_type"),
    "an unknown type of model": (_settings(model_type="nobody"), "`nobody`"),
    "a list for a type of model": (_settings(model_type=[1]), "m/config.json cannot be used"),
    "a type without text": (_settings(model_type="clip"), "a causal language model"),
    "code of its own": (
        _settings(model_type="mine", auto_map={"AutoConfig": "conf.Conf"}),
        "brings its own Python code"),
    "a text for a nested config": (_settings(text_config="x"), "m/config.json"),
    "a list": (_content("config.json", b"[]"), "m/config.json holds a list"),
    "an empty config": (_content("config.json", b""), "m/config.json: no JSON"),
    "a binary config": (_content("config.json", bytes(range(256))), "m/config.json is not UTF-8"),
    "a byte order mark": (_content("config.json", lambda b: b"\xef\xbb\xbf" + b), "BOM"),
    "a nest": (_content("config.json", b"[" * 100_000), "nested too deeply"),
    "5,000 digits": (
        _content("config.json", b'{"hidden_size": ' + b"9" * 5000 + b"}"), "thousands of digits"),
    "a huge config": (
        _content("config.json", b'{"x": "' + b"y" * (20 << 20) + b'"}'), "20,971,5"),
    "a pipe for a config": (_replaced("config.json", os.mkfifo), "holds no config.json"),
}  # fmt: skip

_TOKENIZER = {
    "settings in a list": (_content("tokenizer_config.json", b"[]"), "tokenizer_config.json holds"),
    "broken settings": (_content("tokenizer_config.json", b'{"a'), "tokenizer_config.json: no"),
    "a number for padding": (_keys("tokenizer_config.json", pad_token=7), "pad_token is 7"),
    "half a tokenizer": (_content("tokenizer.json", lambda b: b[: len(b) // 2]), "tokenizer.json"),
    "an empty tokenizer": (_content("tokenizer.json", b"{}"), "'added_tokens'"),
    "a list of tokens": (_content("tokenizer.json", b"[]"), "tokenizer.json holds a list"),
    "an unknown tokenizer": (_keys("tokenizer.json", model={"type": "X"}), "did not match"),
    "a far token": (
        _keys("tokenizer.json", model={"type": "WordLevel", "unk_token": "a",
                                       "vocab": {"a": 0, "b": 10**9}}),
        "the token 'b' has id 1000000000"),
    "a pipe for a tokenizer": (_replaced("tokenizer.json", os.mkfifo), "not a regular file"),
}  # fmt: skip

_STORED = {
    "half the weights": (_content(_WEIGHTS, lambda b: b[: len(b) // 2]), "model.safetensors"),
    "garbage": (_content(_WEIGHTS, b"hello " * 900), "model.safetensors cannot be read"),
    "no byte": (_content(_WEIGHTS, b""), "model.safetensors cannot be read"),
    "a header longer than the file": (
        _content(_WEIGHTS, lambda b: struct.pack("<Q", 1 << 60) + b[8:]), "header too large"),
    "an unknown stored type": (_content(_WEIGHTS, _header(dtype="F99")), "F99"),
    "whole numbers": (_content(_WEIGHTS, _header(dtype="I32")), "0.up_proj.weight is stored"),
    "whole numbers of a method that is not known": (
        _each(_settings(quantization_config={"quant_method": "modelopt"}),
              _content(_WEIGHTS, _header(dtype="I32"))),
        "by quant_method 'modelopt', which transformers does not know; use a copy in bfloat16"),
    "a shape below 0": (_content(_WEIGHTS, _header(shape=[-1, 8])), "model.safetensors"),
    "a giant shape": (_content(_WEIGHTS, _header(shape=[10**12, 10**12])), "model.safetensors"),
    "another shape": (_content(_WEIGHTS, _header(shape=[48 * 32])), "0.up_proj.weight has shape"),
    "a place past the end": (_content(_WEIGHTS, _header(data_offsets=[0, 1 << 50])), "offset"),
    "another config": (_settings(num_experts=16), "down_proj"),
    "more layers": (_settings(num_hidden_layers=6), "no weights for"),
    "no weights": (_replaced(_WEIGHTS, lambda _: None), "only safetensors are read"),
    "a folder for weights": (_replaced(_WEIGHTS, Path.mkdir), "only safetensors are read"),
    "a pipe for weights": (_replaced(_WEIGHTS, os.mkfifo), "only safetensors are read"),
    "an index in a list": (_indexed(lambda _: []), "index.json holds a list"),
    "an empty index": (_indexed(lambda _: {}), "weight_map names no tensor"),
    "an absent shard": (
        _indexed(lambda names: {"weight_map": {**names, "lm_head.weight": "b.safetensors"}}),
        "b.safetensors, which is not there"),
    "a shard elsewhere": (
        _indexed(lambda names: {"weight_map": {**names, "lm_head.weight": "../b.safetensors"}}),
        "'../b.safetensors', expected the name of a file beside"),
    "an index that lies": (
        _indexed(lambda names: {"weight_map": {**names, "more.weight": "a.safetensors"}}),
        "does not hold more.weight"),
}  # fmt: skip


def _file(here: Path) -> None:
    (here / "m").write_text("a file", encoding="utf-8")


CASES = [
    *_cases(_INSPECT, _CONFIG),
    *_cases(_TRACE[:1], {n: _CONFIG[n] for n in ("a giant size", "200,000 layers", "a list")}),
    *_cases(_TRACE, _TOKENIZER),
    *_cases(_TRACE, _STORED),
    case(
        "a broken tokenizer",
        "import vllm c.jsonl -o r --model m",
        "m/tokenizer.json",
        prepare=_model(_TOKENIZER["a list of tokens"][0]),
    ),
    case("an empty name", ["inspect", ""], "the model is an empty text"),
    case("a file", "inspect m", "is not a folder", prepare=_file),
    case("a name of 5,000 letters", f"inspect {'m' * 5000}", "too long"),
    case("a name with a NUL", ["inspect", "a\0b"], "no such folder"),
    case("no name of the hub", "inspect a/b/c", "no such folder"),
    case("a file for a model", "similarity RUN --layers 1 --model m", "m", prepare=_file),
]
