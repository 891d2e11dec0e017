"""The report and the profiles of one run never count differently which experts serve a domain."""

from collections import Counter

import pytest
from typer.testing import CliRunner

from moescope.cli.main import app
from moescope.demo import run_demo
from moescope.metrics.runs import AnalyzedRun
from moescope.metrics.specialization import Q_LEVEL, RULE
from moescope.profiles.facts import Profiles
from moescope.profiles.options import ProfileOptions
from moescope.profiles.profile import profile_all
from moescope.report.data import report_data
from moescope.report.profile_data import profiles_data, unpack


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> AnalyzedRun:
    return run_demo(tmp_path_factory.mktemp("demo") / "run", limit=2500).run


@pytest.fixture(scope="module")
def profiles(run: AnalyzedRun) -> Profiles:
    return profile_all(run, ProfileOptions(use_model=False))


@pytest.fixture(scope="module")
def counts(run: AnalyzedRun) -> dict[str, tuple[int, int]]:
    """Cells used more and less by domain, straight from the table."""
    found: Counter[tuple[str, bool]] = Counter()
    for row in run.table("domain_specialization").to_pylist():
        if row["q"] < Q_LEVEL:
            found[row["domain"], row["value"] > row["others"]] += 1
    made = {name: (found[name, True], found[name, False]) for name in run.domains}
    assert sum(more for more, _ in made.values()) > 20  # there is something to count
    return made


def test_the_report_counts_by_the_rule(
    run: AnalyzedRun, counts: dict[str, tuple[int, int]]
) -> None:
    view = report_data(run)["views"]["prefill"]
    special = view["special"]
    shown = zip(view["domains"], special["more"], special["less"], strict=True)
    assert {name: (more, less) for name, more, less in shown} == counts
    assert special["over"] == sum(special["more"])
    assert special["under"] == sum(special["less"])


def test_the_profiles_and_their_page_count_the_same(
    run: AnalyzedRun, profiles: Profiles, counts: dict[str, tuple[int, int]]
) -> None:
    assert {n: (row["more"], row["less"]) for n, row in profiles.uses().items()} == counts
    data = profiles_data(run, profiles)
    assert data["uses"] == profiles.uses()
    assert data["rules"]["use"] == RULE
    rows = unpack(data["packed"])["tables"]["domains"]
    drawn = Counter(zip(rows["domain"], rows["used"], strict=True))
    assert {name: (drawn[name, "more"], drawn[name, "less"]) for name in counts} == counts


def test_a_summary_names_exactly_the_domains_that_the_expert_serves(profiles: Profiles) -> None:
    for profile in profiles:
        served = {d.domain for d in profile.domains if d.used == "more"}
        before, serves, after = profile.summary.partition(" serves ")
        assert bool(serves) == bool(served), profile.summary
        named = after.partition(" less for ")[0].partition("typical tokens")[0]
        assert all(name in named for name in served), profile.summary
        assert all(name not in before for name in served)


def test_the_table_of_all_profiles_counts_the_same(
    run: AnalyzedRun, counts: dict[str, tuple[int, int]]
) -> None:
    shown = CliRunner().invoke(app, ["profile", str(run.path), "--all", "--no-model"]).output
    for name, (more, less) in counts.items():
        (line,) = [row for row in shown.splitlines() if name in row]
        numbers = [int(cell) for cell in line.replace("│", " ").split()[1:]]
        assert (numbers[0], numbers[2]) == (more, less)
    assert " ".join(RULE.split()[:9]) in " ".join(shown.split())
