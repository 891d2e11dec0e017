"""Tiny tokenizers as fixtures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.corpus.helpers import byte_level, unigram
from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def with_bos() -> PreTrainedTokenizerFast:
    return byte_level("<s> $A")


@pytest.fixture(scope="session")
def without_bos() -> PreTrainedTokenizerFast:
    return byte_level(None)


@pytest.fixture(scope="session")
def with_bos_and_eos() -> PreTrainedTokenizerFast:
    return byte_level("<s> $A </s>")


@pytest.fixture(scope="session")
def sentence_pieces() -> PreTrainedTokenizerFast:
    return unigram("<s> $A")


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write records as JSON lines; strings and bytes stand for raw lines."""

    def write(records: Iterable[Any], name: str = "web.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            r if isinstance(r, bytes) else (r if isinstance(r, str) else json.dumps(r)).encode()
            for r in records
        ]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return write
