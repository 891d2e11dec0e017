"""Models with what they served, each made once."""

import pytest
from tests.support.served import Case, make_case, plain, write_lines

from moescope.metrics.runs import AnalyzedRun, open_run
from moescope.trace.importers import import_traces


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("olmoe", tmp_path_factory.mktemp("served-olmoe"))


@pytest.fixture(scope="session")
def sparse_case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model whose first layer is dense, and whose choice is not by weight alone."""
    return make_case("deepseek_v3", tmp_path_factory.mktemp("served-deepseek"))


@pytest.fixture(scope="session")
def imported(case: Case, tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    """The requests of `case`, imported from vLLM without order."""
    folder = tmp_path_factory.mktemp("imported")
    lines = write_lines(folder / "captured.jsonl", [plain(r) for r in case.requests])
    return open_run(import_traces("vllm", [lines], folder / "run", case.spec))
