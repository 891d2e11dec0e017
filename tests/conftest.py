"""Shared fixtures; shape annotations of the array functions are checked while tests run."""

import os
from collections.abc import Iterator

from jaxtyping import install_import_hook

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKED = [
    "moescope.metrics", "moescope.training.routers", "moescope.training.losses",
    "moescope.training.capacity",
]  # fmt: skip
HOOK = install_import_hook(CHECKED, "beartype.beartype")
HOOK.__enter__()

from pathlib import Path  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from tests.support.installed import installed, sdist, wheel  # noqa: E402, F401 -- fixtures
from tests.support.processes import Starter  # noqa: E402
from tests.support.saved import save_tiny, write_corpus  # noqa: E402

from moescope.corpus import CorpusSpec  # noqa: E402
from moescope.metrics.runs import AnalyzedRun, open_run  # noqa: E402
from moescope.models import LoadedModel, ModelSpec, load_model  # noqa: E402
from moescope.run.options import TraceOptions  # noqa: E402
from moescope.trace import trace  # noqa: E402

torch.set_num_threads(1)
hypothesis.settings.register_profile("busy machine", deadline=None)
hypothesis.settings.load_profile("busy machine")


@pytest.fixture(scope="session")
def starter() -> Iterator[Starter]:
    """Starts moescope in processes of their own."""
    one = Starter()
    yield one
    one.close()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny OLMoE with a tokenizer."""
    return save_tiny("olmoe", tmp_path_factory.mktemp("tiny") / "olmoe")


@pytest.fixture(scope="session")
def tiny_loaded(tiny_folder: Path) -> LoadedModel:
    return load_model(ModelSpec(str(tiny_folder)))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts.jsonl")


@pytest.fixture(scope="session")
def tiny_run(
    tiny_loaded: LoadedModel, tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> AnalyzedRun:
    """A finished run of the tiny OLMoE, every token kept, with decoding."""
    folder = tmp_path_factory.mktemp("run") / "run"
    options = TraceOptions(keep="all", generate=4, context=40, checkpoint_seconds=0)
    trace(tiny_loaded, CorpusSpec(path=str(tiny_corpus)), folder, options)
    return open_run(folder)
