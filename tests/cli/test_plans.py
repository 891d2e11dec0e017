"""A plan that one verb writes is taken by every other, with no further word."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Done
from tests.cli.test_cold_start import NUMBERS, ran
from tests.support.saved import save_tiny, write_corpus

from moescope.corpus import CorpusSpec
from moescope.models import ModelSpec, load_model
from moescope.plan import Plan
from moescope.result import read_result
from moescope.run.options import TraceOptions
from moescope.trace import trace

ABLATE = ("--corpus", "texts.jsonl", "--tokens", 200, "--controls", 0)
STEER = ("--prompt", "the plan covers daily living", "--generate", 1, "--controls", 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    save_tiny("olmoe", folder / "moe")
    loaded = load_model(ModelSpec(str(folder / "moe")))
    for name, seed in (("texts", 0), ("others", 1)):
        write_corpus(folder / f"{name}.jsonl", documents_per_domain=24, seed=seed)
        spec = CorpusSpec(path=str(folder / f"{name}.jsonl"))
        run = folder / name.replace("texts", "run")
        trace(loaded, spec, run, TraceOptions(context=40, checkpoint_seconds=0))
    return folder


@pytest.fixture
def selected(moescope: Callable[..., Done], place: Path) -> Path:
    words = ("--domain", "domain0", "--budget", "20%", "-o", "plan.json")
    done = moescope("select", "run", *words)
    assert done.returncode == 0, done.stderr
    return place / "plan.json"


def test_select_prints_the_verdict_first_and_writes_a_plan(
    moescope: Callable[..., Done], selected: Path
) -> None:
    words = ("select", "run", "--domain", "domain0", "--budget", "20%")
    done = moescope(*words)
    first, *_ = done.stdout.splitlines()
    assert " of the 6 chosen experts " in first or "All 6 chosen experts" in first
    assert "on documents that had no part in the choice" in first
    plan = Plan.read(selected)
    assert len(plan.experts) == 6  # a fifth of 4 × 8
    assert all(str(expert) in done.stdout for expert in plan.experts)
    assert plan.split is not None
    found = json.loads(moescope(*words, "--format", "json").stdout)
    assert {r["name"] for r in found["experts"]} == set(map(str, plan.experts))
    assert found["answers"][0] == first
    rows = moescope(*words, "--format", "csv").stdout.splitlines()
    assert rows[0].startswith("name,layer,expert,score,score_held_out,share,rate,")
    assert len(rows) == 7


def test_nothing_heavy_is_imported(place: Path) -> None:
    words = ("select", place / "run", "--domain", "domain0", "--score", "gate", "--per-layer", 1)
    code, seen, said = ran(*words, cwd=place)
    assert code == 0, said
    assert seen - NUMBERS - {"pandas"} == set()


def test_a_plan_of_select_is_ablated_steered_and_confirmed(
    moescope: Callable[..., Done], selected: Path, place: Path
) -> None:
    done = moescope("ablate", "moe", "--plan", selected, *ABLATE, "-o", "removed")
    assert done.returncode == 0, done.stderr
    assert "the plan says" not in done.stderr
    assert Plan.read(place / "removed" / "plan.json") == Plan.read(selected)
    done = moescope("steer", "moe", "--plan", selected, *STEER)
    assert done.returncode == 0, done.stderr
    assert "the plan does not say what to do to" in done.stderr
    assert "+2 logits" in done.stdout
    done = moescope("steer", "moe", "--plan", selected, *STEER, "--as", "x0.5")
    assert "× 0.5" in done.stdout
    assert "does not say" not in done.stderr
    done = moescope("select", "others", "--plan", selected)
    assert done.returncode == 0, done.stderr
    assert "of the plan" in done.stdout.splitlines()[0]
    done = moescope("select", "run", "--plan", selected)
    assert done.returncode == 2
    assert "was chosen on the documents of run itself" in done.stderr


def test_ablate_leaves_a_plan_that_repeats_it(moescope: Callable[..., Done], place: Path) -> None:
    words = ("--experts", "L1E3,L2E0-1", "--edit", "scale=0.5")
    done = moescope("ablate", "moe", *words, *ABLATE, "-o", "hand")
    assert done.returncode == 0, done.stderr
    plan = Plan.read(place / "hand" / "plan.json")
    assert [(str(e.expert), e.setting) for e in plan.entries] == [
        ("L1E3", "x0.5"), ("L2E0", "x0.5"), ("L2E1", "x0.5"),
    ]  # fmt: skip
    again = moescope("ablate", "moe", "--plan", "hand/plan.json", *ABLATE, "-o", "again")
    assert again.returncode == 0, again.stderr
    one, other = (read_result(place / name, "ablation") for name in ("hand", "again"))
    assert other.about["edit"] == "scale=0.5"
    assert one.tables["damage"]["kl"].equals(other.tables["damage"]["kl"])
    steered = moescope("steer", "moe", "--plan", "hand/plan.json", *STEER)
    assert "L1E3, L2E0, L2E1 × 0.5" in steered.stdout
    zeroed = moescope(
        "ablate", "moe", "--plan", "hand/plan.json", "--edit", "zero", *ABLATE, "-o", "zeroed"
    )
    assert "the plan says x0.5; here --edit zero is done to all of its experts" in zeroed.stderr
    swept = moescope("ablate", "moe", "--each", "--layers", 1, *ABLATE[:4], "-o", "each")
    assert swept.returncode == 0, swept.stderr
    assert not (place / "each" / "plan.json").exists()


def test_a_contrast_is_ablated_and_steered_another_way(
    moescope: Callable[..., Done], place: Path
) -> None:
    for name, domain in (("a", "domain0"), ("b", "domain1")):
        lines = (place / "texts.jsonl").read_text().splitlines()
        (place / f"{name}.jsonl").write_text("\n".join(x for x in lines if domain in x))
    words = ("--with", "a.jsonl", "--without", "b.jsonl")
    assert moescope("contrast", "moe", *words, "-o", "told").returncode == 0
    plan = Plan.read(place / "told" / "plan.json")
    assert plan.split is not None
    done = moescope("ablate", "moe", "--plan", "told/plan.json", *ABLATE, "-o", "gone")
    assert done.returncode == 0, done.stderr
    assert "here --edit zero is done to all of its experts" in done.stderr
    done = moescope("steer", "moe", "--plan", "told/plan.json", *STEER, "--as", "mask")
    assert f"mask {plan.experts[0]}" in done.stdout
    done = moescope("select", "others", "--plan", "told/plan.json", "--domain", "domain0")
    assert done.returncode == 0, done.stderr
    assert "does not say on which documents it was chosen" in done.stderr
    done = moescope("contrast", "moe", *words, "-o", "plan2.json")
    assert done.returncode == 2
    assert "plan2.json is called like a file" in done.stderr
