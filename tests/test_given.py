"""What a person gives: numbers and small files, bounded before they are used."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from moescope.axes import ExpertRef
from moescope.cli.settings import RunArgs, parse_layers
from moescope.corpus import CorpusSpec
from moescope.errors import BadInputError
from moescope.given import (
    MAX_SEED,
    MOST_EXPERTS,
    first_problem,
    parse_json,
    parse_yaml,
    problem_words,
    read_text,
    require_seed,
    whole_number,
)
from moescope.intervene import measure_damage, steer, sweep, sweep_experts
from moescope.models import LoadedModel
from moescope.models.edits import bias
from moescope.run.aggregates import pack, unpack
from moescope.run.options import TraceOptions
from moescope.similarity.compare import SimilarityOptions
from moescope.training.recipe import ModelRecipe

WITH_A_SEED: dict[str, Callable[[int], Any]] = {
    "TraceOptions": lambda seed: TraceOptions(seed=seed),
    "CorpusSpec": lambda seed: CorpusSpec(path="texts", seed=seed),
    "SimilarityOptions": lambda seed: SimilarityOptions(seed=seed),
    "RunArgs": lambda seed: RunArgs(model="m", corpus="c", out="o", seed=seed),
}


@pytest.mark.parametrize("kind", WITH_A_SEED)
def test_a_seed_has_63_bits_wherever_it_is_given(kind: str) -> None:
    for seed in (0, MAX_SEED):
        assert WITH_A_SEED[kind](seed).seed == seed
    for seed in (-1, MAX_SEED + 1, 2**70):
        with pytest.raises(ValidationError):
            WITH_A_SEED[kind](seed)


def test_no_model_is_trained_with_more_experts_than_a_run_can_hold() -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "top_k": 1}
    sizes["num_attention_heads"] = 1
    assert ModelRecipe(**sizes, num_experts=MOST_EXPERTS)
    with pytest.raises(ValidationError):
        ModelRecipe(**sizes, num_experts=MOST_EXPERTS + 1)
    zero, last = np.zeros(2, dtype=np.int64), np.array([0, MOST_EXPERTS - 1])
    assert unpack(pack(zero, zero, last))[2].tolist() == last.tolist()
    assert unpack(pack(zero, zero, last + 1))[2].tolist() == [1, 0]  # the next one has no room


def test_the_first_problem_is_one_line_with_its_place() -> None:
    class Inner(BaseModel):
        size: int = Field(ge=1)

    class Outer(BaseModel):
        inner: list[Inner]

        @model_validator(mode="after")
        def _fits(self) -> Self:
            raise ValueError("two\nlines " + "x" * 500)

    def said(**settings: Any) -> str:
        with pytest.raises(ValidationError) as raised:
            Outer.model_validate(settings)
        return first_problem(raised.value)

    assert said(inner=[{"size": 0}]).startswith("inner.0.size: expected 1 or more")
    assert said() == "inner: missing"
    assert said(inner=[]).startswith("two lines xxx")
    assert len(said(inner=[])) == 200


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_in_python_too(seed: int, tiny_loaded: LoadedModel) -> None:
    edit = bias([ExpertRef(1, 3)], 2.0)
    for call in (
        lambda: require_seed(seed),
        lambda: steer(tiny_loaded, "the plan", edit, seed=seed),
        lambda: sweep(tiny_loaded, "the plan", lambda _: [edit], [1.0], seed=seed),
        lambda: measure_damage(tiny_loaded, [], "L1E3", seed=seed),
        lambda: sweep_experts(tiny_loaded, [], None, seed=seed),
    ):
        with pytest.raises(BadInputError, match=f"the seed is {seed}"):
            call()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_what_is_no_number_is_no_setting(number: float, tiny_loaded: LoadedModel) -> None:
    for settings in (
        lambda: TraceOptions(checkpoint_seconds=number),
        lambda: CorpusSpec(path="texts", test_share=number),
        lambda: RunArgs(model="m", corpus="c", out="o", worker_cpus=number),
    ):
        with pytest.raises(ValidationError):
            settings()
    with pytest.raises(BadInputError, match="temperature"):
        steer(tiny_loaded, "the plan", bias([ExpertRef(1, 3)], 2.0), temperature=number)


def test_only_ascii_digits_are_a_number() -> None:
    assert [whole_number(t) for t in ("0", " 12 ", "999999999")] == [0, 12, 999_999_999]
    assert not any(
        whole_number(t) is not None
        for t in ("", "²", "٣", "1e3", "-1", "1_0", "9" * 10, "9" * 5000)
    )
    for text in ("²", "1-٣", "9" * 5000, "0-99999999999", "0-999999999", "3-1", "1-", "-", ""):
        with pytest.raises(BadInputError, match="`layers`"):
            parse_layers(text)
    assert parse_layers("0, 3,8-11") == (0, 3, 8, 9, 10, 11)


def test_a_file_is_looked_at_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "good").write_text("naïve", encoding="utf-8")
    (tmp_path / "bytes").write_bytes(b"ab\xff")
    (tmp_path / "large").write_bytes(b"x" * 101)
    os.mkfifo(tmp_path / "pipe")
    assert read_text(tmp_path / "good") == "naïve"
    for name, said in (
        ("gone", "cannot be read"), (".", "is a folder"), ("pipe", "a device or a pipe"),
        ("/dev/zero", "a device or a pipe"), ("bytes", r"not UTF-8 text \(byte 2\)"),
        ("large", "has 101 bytes"), ("n" * 300, "File name too long"),
        ("a\0b", "not a name of a file"),
    ):  # fmt: skip
        with pytest.raises(BadInputError, match=said):
            read_text(tmp_path / name, 100)


def test_json_that_python_would_choke_on_is_refused() -> None:
    assert parse_json('{"a": [1, null]}') == {"a": [1, None]}
    for text, said in (
        ("[" * 100_000, "too deeply"), ("9" * 5000, "thousands of digits"), ("{", "no JSON"),
        (r'{"a": ["\ud800"]}', "no text can have"), (r'{"\u0000": 1}', "no text can have"),
    ):  # fmt: skip
        with pytest.raises(BadInputError, match=said):
            parse_json(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 1\ncontext: 40\nseed: 2\n", "line 3: 'seed' is given twice, first in line 1"),
        ("data:\n  train: a\n  train: b\n", "line 3: 'train' is given twice, first in line 2"),
        ("keep: [", "no YAML in line 1, column 8: expected the node content"),
        ("a: b: c", "no YAML in line 1, column 5: mapping values are not allowed here"),
        ("a: 'x\n", "no YAML in line 2, column 1: found unexpected end of stream"),
    ],
)
def test_a_slip_in_yaml_is_one_line_that_says_where(text: str, says: str) -> None:
    with pytest.raises(BadInputError) as raised:
        parse_yaml(text)
    assert says in str(raised.value)
    assert "^" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_word_of_pydantic_reaches_a_person() -> None:
    """Every setting of the largest verb, with every kind of value that it cannot take."""
    odd = ["x", [1], {}, 1.5, math.nan, -5, "", 2**70, [[]], [2.5, {}], None]
    needed = {"model": "m", "corpus": "c", "out": "o"}
    said = set()
    for name in RunArgs.model_fields:
        for value in odd:
            try:
                RunArgs.model_validate({**needed, name: value})
            except BadInputError:
                continue
            except ValidationError as error:
                said |= {problem_words(problem) for problem in error.errors()}
    assert len(said) > 8
    assert all(text.startswith("expected ") for text in said)
    assert not [t for t in said if re.search(r"[Ii]nput|valid|tuple|integer|boolean|Value", t)]
    assert not [t for t in said if "{" in t]
