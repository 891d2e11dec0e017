"""What the cases of bad input work on: a tiny model, texts, runs, plans, a recipe."""

import json
from pathlib import Path

import yaml
from tests.support.saved import save_tiny, tiny_tokenizer, write_corpus
from tests.training.conftest import BASE

from moescope.axes import ExpertRef
from moescope.corpus import CorpusSpec
from moescope.measure.identity import describe_model
from moescope.metrics.runs import open_run
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.plan import Plan, PlanEntry
from moescope.run.options import TraceOptions
from moescope.trace import trace

WORDS = {
    "MOE": "moe",  # a model of 4 MoE layers with 8 experts, 2 for each token
    "TEXTS": "texts.jsonl",
    "OTHERTEXTS": "other.jsonl",
    "RUN": "run",  # of MOE on TEXTS; its tables are there
    "OTHERRUN": "other",  # of MOE on OTHERTEXTS
    "RECIPE": "recipe.yaml",
    "PLAN": "plan.json",  # experts of MOE, without a value
    "STEERING": "steering.json",  # the same with a value
}
"""What a word of a case stands for, alone or as the beginning of a path."""


def make_place(folder: Path) -> Path:
    """Write it; takes seconds."""
    save_tiny("olmoe", folder / "moe")
    write_corpus(folder / "texts.jsonl", documents_per_domain=4)
    write_corpus(folder / "book.jsonl", documents_per_domain=30)
    write_corpus(folder / "other.jsonl", documents_per_domain=3, seed=1)
    loaded = load_model(ModelSpec(str(folder / "moe")))
    options = TraceOptions(context=40, checkpoint_seconds=0)
    for run, texts in (("run", "texts.jsonl"), ("other", "other.jsonl")):
        trace(loaded, CorpusSpec(path=str(folder / texts)), folder / run, options)
    for name in ("load", "balance"):  # kept beside the run when first asked for
        open_run(folder / "run").table(name)
    _plans(folder, loaded)
    tiny_tokenizer().save_pretrained(folder / "tokenizer")
    recipe = {**BASE, "tokenizer": {"path": "tokenizer"}}
    recipe["data"] = {**BASE["data"], "train": "book.jsonl"}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return folder


def _plans(folder: Path, loaded: LoadedModel) -> None:
    entry = PlanEntry(ExpertRef(1, 3), "chosen by hand", 0.5)
    for name, setting in (("plan", None), ("steering", "+2.0")):
        made = [entry._replace(setting=setting)]
        Plan.of(describe_model(loaded), made, "a test").write(folder / f"{name}.json")


def filled(word: str, place: Path) -> str:
    """The word with the name of the place's thing replaced by its path."""
    first, slash, rest = word.partition("/")
    return str(place / WORDS[first]) + slash + rest if first in WORDS else word


def changed_json(path: Path, **changes: object) -> str:
    """The JSON file with other keys, as text."""
    return json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes})
