"""Captures that cannot be imported: arrays, tables, archives, and what is not a file."""

import base64
import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tests.cli.bad import Case, case

_VLLM = "import vllm {file} -o r --model MOE --domain d"
_SGLANG = "import sglang {file} -o r --model MOE --domain d"
_LLAMA = "import llamacpp {file} -o r --model MOE --domain d"

_TOKENS, _LAYERS, _TOP_K = 6, 4, 3
_EXPERTS = np.tile(np.arange(_TOP_K), (_TOKENS - 1, _LAYERS, 1))


def _record(**changes: Any) -> dict[str, Any]:
    """A request of MOE, with other fields."""
    stock = {
        "prompt_token_ids": [5, 6, 7, 8],
        "output_token_ids": [9, 10],
        "routed_experts": _EXPERTS.tolist(),
    }
    return {**stock, **changes}


def _lines(**changes: Any) -> Callable[[Path], None]:
    text = json.dumps(_record(**changes)) + "\n"
    return _file("c.jsonl", text.encode())


def _file(name: str, content: bytes) -> Callable[[Path], None]:
    def prepare(here: Path) -> None:
        (here / name).write_bytes(content)

    return prepare


def _npy(shape: tuple[int, ...], dtype: str, data: bytes = b"") -> bytes:
    """A .npy file with a header of its own choice."""
    buffer = io.BytesIO()
    described = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue() + data


def _zipped(**members: bytes) -> Callable[[Path], None]:
    def prepare(here: Path) -> None:
        with zipfile.ZipFile(here / "c.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(f"{name}.npy", content)

    return prepare


def _bomb(here: Path) -> None:
    """An archive that says it unpacks to three gigabytes."""
    with zipfile.ZipFile(here / "c.npz", "w") as archive:
        archive.writestr("routed_experts.npy", _npy((3 << 30,), "|u1"))
        archive.filelist[0].file_size = 4 << 30


def _floats(here: Path) -> None:
    save_file({"routed_experts": _EXPERTS.astype(np.float32)}, here / "c.safetensors")


def _answer(**meta: Any) -> Callable[[Path], None]:
    """An answer of SGLang's /generate."""
    data = base64.b64encode(_EXPERTS.astype("<i4").tobytes()).decode()
    stock = {"prompt_tokens": 4, "completion_tokens": 2, "routed_experts": data}
    text = json.dumps({"output_ids": [9, 10], "meta_info": {**stock, **meta}})
    return _file("c.jsonl", text.encode() + b"\n")


def _table(text: str) -> Callable[[Path], None]:
    return _file("c.csv", text.encode())


_ROWS = "\n".join(
    f"prefill,{t},{layer},0,0\nprefill,{t},{layer},1,1" for t in (0, 1) for layer in range(4)
)
_HEADER = "phase,token,layer,rank,expert"

_RECORDS = {
    "a number for a record": (_file("c.jsonl", b"7\n"), "c.jsonl:1: not an object"),
    "a nest": (_file("c.jsonl", b"[" * 100_000 + b"\n"), "nested too deeply"),
    "5,000 digits": (_file("c.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n"), "not valid JSON"),
    "no UTF-8": (_file("c.jsonl", b'{"id": "\xe4"}\n'), "c.jsonl:1"),
    "a NUL": (_file("c.jsonl", b'{"id": "\0"}\n'), "NUL"),
    "an empty file": (_file("c.jsonl", b""), "no token was counted"),
    "a sentinel of another number": (
        _lines(routed_experts=np.where(np.arange(5)[:, None, None] == 2, -5, _EXPERTS).tolist()),
        "token 2: got -5, expected 0 to 7"),
    "an expert past the last": (_lines(routed_experts=(_EXPERTS + 7).tolist()), "expected 0 to 7"),
    "a fraction": (_lines(routed_experts=(_EXPERTS + 0.5).tolist()), "whole numbers"),
    "no number": (_lines(routed_experts=np.full_like(_EXPERTS, np.nan, float).tolist()), "whole"),
    "infinity": (_lines(routed_experts=[[[float("inf")] * 3] * 4] * 5), "whole numbers"),
    "truth values": (_lines(routed_experts=[[[True, False, True]] * 4] * 5), "got truth values"),
    "one expert too few": (_lines(routed_experts=[[[0, 1]] * 4] * 5), "got 2, expected 3"),
    "ragged rows": (_lines(routed_experts=[[[0, 1]], [[0]]]), "ragged"),
    "terabytes in a shape": (
        _lines(routed_experts={"data": "AAAA", "dtype": "uint8", "shape": [10**6] * 3}),
        "expected 1,000,000,000,000,000,000"),
    "a shape in a shape": (
        _lines(routed_experts={"data": "AAAA", "dtype": "uint8", "shape": [[1, 2, 3]] * 3}),
        "no shape of three axes"),
    "terabytes in a header": (
        _lines(routed_experts=base64.b64encode(_npy((10**12,), "<i8")).decode()),
        "its header declares 8,000,000,000,000 bytes"),
    "a pickle in a header": (
        _lines(routed_experts=base64.b64encode(_npy((1,), "|O", b"x")).decode()),
        "Python objects"),
    "a far beginning": (_lines(start=10**12), "start is not a position"),
    "a beginning of 31 digits": (_lines(start=10**30), "start is not a position"),
    "half a character": (
        _lines(prompt_token_ids=None, prompt="\ud800"), "prompt is not valid Unicode"),
    "one row for every token": (_lines(), "one row of routing repeated"),
    "a mask of fractions": (_lines(counted=[0.5] * 6), "counted"),
}  # fmt: skip

_ARCHIVES = {
    "no archive": (_file("c.npz", b"nothing"), "not a .npz archive"),
    "a plain array": (_file("c.npz", _npy((1,), "|u1", b"x")), "not a .npz archive"),
    "seven terabytes": (
        _zipped(routed_experts=_npy((10**12,), "<i8")),
        "declares 8,000,000,000,000",
    ),
    "a pickle": (_zipped(routed_experts=_npy((1,), "|O", b"\x80\x04.")), "Python objects"),
    "a bomb": (_bomb, "unpacks to"),
    "text for an array": (_zipped(routed_experts=b"hello hello hello"), "not a .npz archive"),
}

_TABLES = {
    "a column twice": (_table("token,layer,layer,expert\n0,0,0,1\n"), "two columns of one name"),
    "a far token": (
        _table(f"{_HEADER}\n{_ROWS.replace(',0,', ',1000000000000,', 1)}\n"), "holds no positions"),
    "far tokens": (
        _table("token,layer,expert\n" + "".join(
            f"1000000000000,{layer},{expert}\n" for layer in range(4) for expert in (0, 1))),
        "holds no positions"),
    "a token below 0": (_table(f"{_HEADER}\nprefill,-1,0,0,1\n"), "holds no positions"),
    "a fraction for an expert": (_table(f"{_HEADER}\nprefill,0,0,0,0.5\n"), "whole numbers"),
    "a word for an expert": (_table(f"{_HEADER}\nprefill,0,0,0,nan\n"), "whole numbers"),
    "rows of another length": (_table(f"{_HEADER}\nprefill,0\n"), "not a CSV of rows"),
    "no row": (_table(f"{_HEADER}\n"), "c.csv"),
    "no line": (_table(""), "c.csv"),
    "bytes": (_file("c.csv", bytes(range(256))), "c.csv"),
}  # fmt: skip


_COUNTS = "import counts {file} -o r --model MOE --domain d"
_SUMS = {
    "no count": (_table("layer,expert\n0,1\n"), "no column 'count'"),
    "no header": (_table("0,1,5\n"), "no column 'layer'"),
    "a layer of another model": (_table("layer,expert,count\n77,1,5\n"), "not an MoE layer"),
    "an expert past the last": (_table("layer,expert,count\n0,99,5\n"), "expected 0 to 7"),
    "a count below 0": (_table("layer,expert,count\n0,1,-5\n"), "a count out of range"),
    "an endless count": (_table(f"layer,expert,count\n0,1,{10**17}\n"), "a count out of range"),
    "a word for a count": (_table("layer,expert,count\n0,1,many\n"), "whole numbers"),
    "one layer of four": (_table("layer,expert,count\n0,1,6\n0,2,6\n"), "not those of whole"),
    "an unknown phase": (_table("layer,expert,count,phase\n0,1,6,x\n"), "an unknown phase"),
    "no sum": (_table("layer,expert,count\n0,1,0\n"), "no choice of an expert"),
}
_ARRAYS = {
    "sums of another shape": (_file("c.json", b'{"logical_count": [[1]]}'), "got the shape [1, 1]"),
    "ragged sums": (_file("c.json", b'{"logical_count": [[1], [1, 2]]}'), "ragged"),
    "sums of words": (_file("c.json", b'{"logical_count": "many"}'), "not an array"),
    "another object": (_file("c.json", b'{"physical_count": [1]}'), "logical_count"),
}


_PACKED = {
    "a bomb": (
        _file("c.csv.gz", gzip.compress(b"0,1\n" * (1 << 18)) * 520),
        "unpacks to more than 512 MB",
    ),
    "no gzip": (_file("c.csv.gz", b"layer,expert\n"), "not gzip"),
}


def _cases(
    words: str, file: str, faults: dict[str, tuple[Callable[[Path], None], str]]
) -> list[Case]:
    return [
        case(f"{file}: {name}", words.format(file=file), says, prepare=prepare)
        for name, (prepare, says) in faults.items()
    ]


def _pipe(here: Path) -> None:
    os.mkfifo(here / "c.jsonl")


def _dangling(here: Path) -> None:
    (here / "c.jsonl").symlink_to("nowhere.jsonl")


CASES = [
    *_cases(_VLLM, "c.jsonl", _RECORDS),
    *_cases(_VLLM, "c.npz", _ARCHIVES),
    *_cases(_LLAMA, "c.csv", _TABLES),
    *_cases(_LLAMA, "c.csv.gz", _PACKED),
    *_cases(_COUNTS, "c.csv", _SUMS),
    *_cases(_COUNTS, "c.json", _ARRAYS),
    case(
        "a pickle of sums",
        _COUNTS.format(file="c.pt"),
        "unknown kind of file",
        prepare=_file("c.pt", b"PK"),
    ),
    case(
        "sums in order",
        "import counts c.csv -o r --model MOE --ordered",
        "--ordered",
        prepare=_table("layer,expert,count\n0,1,6\n"),
    ),
    case(
        "fractions in safetensors",
        _VLLM.format(file="c.safetensors"),
        "c.safetensors",
        prepare=_floats,
    ),
    case(
        "no safetensors",
        _VLLM.format(file="c.safetensors"),
        "c.safetensors",
        prepare=_file("c.safetensors", b"x" * 100),
    ),
    case(
        "seven terabytes of prompt",
        _SGLANG.format(file="c.jsonl"),
        "no prompt_tokens",
        prepare=_answer(prompt_tokens=10**12),
    ),
    case(
        "tokens below 0",
        _SGLANG.format(file="c.jsonl"),
        "no completion_tokens",
        prepare=_answer(completion_tokens=-1),
    ),
    case(
        "log-probabilities of another form",
        _SGLANG.format(file="c.jsonl"),
        "another form",
        prepare=_answer(input_token_logprobs=[7]),
    ),
    case("a pipe for a capture", _VLLM.format(file="c.jsonl"), "no regular file", prepare=_pipe),
    case("a device for a capture", _VLLM.format(file="/dev/null"), "no regular file"),
    case("a link to nothing", _VLLM.format(file="c.jsonl"), "no such file", prepare=_dangling),
    case("an empty folder", _VLLM.format(file="."), "no capture file in it"),
]
