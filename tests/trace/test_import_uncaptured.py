"""Rows that pass every check of a single row, and are no routing all the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.saved import save_tiny
from tests.support.served import Case, case_of, imported_lines, plain

from moescope.errors import CorpusError


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model with K = 1, where zeros are a valid row."""
    folder = tmp_path_factory.mktemp("single")
    return case_of(save_tiny("olmoe", folder / "model", num_experts_per_tok=1), folder)


def with_rows(case: Case, experts: NDArray[Any], number: int = 0) -> dict[str, Any]:
    return plain(case.requests[number], routed_experts=experts.tolist())


def test_zero_filled_prompt_rows_are_left_out_and_counted(single: Case, tmp_path: Path) -> None:
    request = max(single.requests, key=lambda r: len(r.prompt))
    experts = request.experts.copy()
    experts[:9] = 0  # BOS and eight words
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole = imported_lines("vllm", [plain(request)], single, tmp_path / "a")
    cut = imported_lines("vllm", [plain(request, routed_experts=experts.tolist())], single,
                         tmp_path / "b")  # fmt: skip
    tokens = [r.manifest.coverage["tokens_by_phase"]["prefill"] for r in (whole, cut)]
    assert tokens[1] == tokens[0] - 8
    assert cut.manifest.progress["left_out"]["tokens whose routing was filled with zeros"] == 8
    assert any("8 tokens have expert 0 in every layer" in n for n in cut.manifest.source["notes"])
    sample = cut.tokens()
    assert sample is not None
    assert sample.pos.min() == 9


def test_a_lone_row_of_zeros_is_routing(single: Case, tmp_path: Path) -> None:
    experts = single.requests[0].experts.copy()
    experts[2] = 0
    run = imported_lines("vllm", [with_rows(single, experts)], single, tmp_path)
    assert "filled" not in " ".join(run.manifest.progress["left_out"])


def test_a_router_that_favours_expert_0_keeps_its_rows(single: Case, tmp_path: Path) -> None:
    """Every second row is all zeros except for one layer: runs of zeros are no surprise then."""
    experts = np.zeros_like(single.requests[0].experts)
    experts[::2, 3] = 1
    experts[3:6] = 0
    run = imported_lines("vllm", [with_rows(single, experts)], single, tmp_path)
    assert "filled" not in " ".join(run.manifest.progress["left_out"])


def test_a_request_of_zeros_alone_is_refused(single: Case, tmp_path: Path) -> None:
    zeros = np.zeros_like(single.requests[0].experts)
    with pytest.raises(CorpusError, match=r"c\.jsonl:1: routing that is all zero"):
        imported_lines("vllm", [with_rows(single, zeros)], single, tmp_path)


@pytest.mark.parametrize("part", ["request", "prompt", "output"])
def test_one_row_repeated_is_refused(part: str, case: Case, tmp_path: Path) -> None:
    request = case.requests[0]
    experts, read = request.experts.copy(), len(request.prompt)
    here = {"request": slice(None), "prompt": slice(read), "output": slice(read, None)}[part]
    experts[here] = experts[3]
    output = [*range(20, 20 + len(request.output))]  # different tokens
    record = plain(request, routed_experts=experts.tolist(), output_token_ids=output)
    with pytest.raises(CorpusError, match=f"one row of routing repeated.*of the {part}") as error:
        imported_lines("vllm", [record], case, tmp_path)
    assert not (tmp_path / "run").exists()
    assert "capture it again" in str(error.value)


def test_it_is_left_out_with_a_count(case: Case, tmp_path: Path) -> None:
    same = case.requests[0].experts.copy()
    same[:] = same[0]
    records = [with_rows(case, same), plain(case.requests[1])]
    run = imported_lines("vllm", records, case, tmp_path, on_error="skip")
    assert run.manifest.coverage["skipped_records"] == {"one row of routing repeated": 1}


def test_the_same_token_again_may_have_the_same_row(case: Case, tmp_path: Path) -> None:
    experts = case.requests[0].experts[:8].copy()
    experts[1:] = experts[1]
    record = plain(case.requests[0], routed_experts=experts.tolist(),
                   prompt_token_ids=[1, *[7] * 7], output_token_ids=[7])  # fmt: skip
    run = imported_lines("vllm", [record], case, tmp_path)
    assert run.manifest.coverage["tokens_by_phase"] == {"prefill": 7}


def test_three_tokens_prove_nothing(case: Case, tmp_path: Path) -> None:
    experts = case.requests[0].experts[:3].copy()
    experts[:] = experts[0]
    record = plain(case.requests[0], routed_experts=experts.tolist(),
                   prompt_token_ids=[7, 8, 9], output_token_ids=[10])  # fmt: skip
    run = imported_lines("vllm", [record], case, tmp_path)
    assert run.manifest.coverage["tokens_by_phase"] == {"prefill": 3}


def test_the_layers_that_are_not_imported_speak_too(case: Case, tmp_path: Path) -> None:
    from moescope.run.options import TraceOptions

    experts = case.requests[0].experts.copy()
    experts[:, 0] = experts[0, 0]  # a router that has collapsed, in one layer
    run = imported_lines("vllm", [with_rows(case, experts)], case, tmp_path,
                         options=TraceOptions(layers=(0,)))  # fmt: skip
    assert run.shape.layers == (0,)
