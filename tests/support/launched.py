"""A model, a corpus, and the runs that launched workers must come to."""

from dataclasses import dataclass
from pathlib import Path

from tests.support.same_run import assert_same_sums, assert_same_tokens, kept_tokens
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec
from moescope.launch.job import Job
from moescope.metrics.runs import open_run
from moescope.models import ModelSpec, load_model
from moescope.run.merge import merge_runs
from moescope.run.options import TraceOptions
from moescope.trace import trace

OPTIONS = TraceOptions(
    keep="all", context=64, pool_tokens=256, batch_tokens=128, sample_tokens=500, generate=3,
)  # fmt: skip


@dataclass
class Place:
    """A model, a corpus, the run of it by one process, and the run of three shards."""

    model: ModelSpec
    corpus: CorpusSpec
    whole: Path
    merged: Path

    def job(self, **changes: object) -> Job:
        given = {"model": self.model, "corpus": self.corpus, "options": OPTIONS, **changes}
        return Job(**given)


def make_place(folder: Path, documents_per_domain: int) -> Place:
    model = ModelSpec(str(save_tiny("olmoe", folder / "moe")))
    path = write_corpus(folder / "texts.jsonl", documents_per_domain=documents_per_domain)
    corpus, loaded = CorpusSpec(path=str(path)), load_model(model)
    whole = trace(loaded, corpus, folder / "whole", OPTIONS)
    specs = [corpus.model_copy(update={"shard": f"{n}/3"}) for n in (1, 2, 3)]
    parts = [trace(loaded, s, folder / f"part{n}", OPTIONS) for n, s in enumerate(specs)]
    return Place(model, corpus, whole, merge_runs(parts, folder / "merged"))


def assert_is_the_run(folder: Path, place: Place) -> None:
    """Bit for bit that of three shards never interrupted; in sums that of one process."""
    names = ["documents.parquet", "sample.parquet", "vocabulary.json"]
    names += [p.relative_to(place.merged).as_posix() for p in place.merged.glob("shards/*")]
    names += [p.relative_to(place.merged).as_posix() for p in place.merged.glob("aggregates/*")]
    assert len(names) > 5
    for name in names:
        assert (folder / name).read_bytes() == (place.merged / name).read_bytes(), name
    one, other = open_run(place.whole), open_run(folder)
    assert_same_sums(one, other)
    assert_same_tokens(one, other, kept_tokens(one), kept_tokens(other))
    assert one.manifest.progress == other.manifest.progress
