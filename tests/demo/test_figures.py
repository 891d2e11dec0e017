"""Figures that pages quote come out here too, in whatever precision this processor computes."""

import re
import shlex
from pathlib import Path

import pytest
from tests.support.snippets import blocks_of, commands_of

from moescope import open_run
from moescope.cli.main import app
from moescope.demo import run_demo

ROOT = Path(__file__).resolve().parents[2]
README = " ".join((ROOT / "README.md").read_text("utf-8").split())


def quoted(words: str) -> list[float]:
    """The numbers that README has where the words have ``#``."""
    pattern = re.escape(words).replace(r"\#", "#").replace("#", r"([0-9.]+)")
    found = re.search(pattern, README)
    assert found is not None, words
    return [float(number) for number in found.groups()]


@pytest.mark.slow
def test_the_figures_of_the_readme_come_out_whatever_the_precision(tmp_path: Path) -> None:
    """In bfloat16 and in float32 they differ by less than a unit of the last digit that it has."""
    run = run_demo(tmp_path / "run", corpus="samples").run
    table = run.table("domain_specialization").to_pandas()
    [cell] = table[
        (table.domain == "drama") & (table.layer == 5) & (table.expert == 10)
    ].itertuples()
    measured = [
        (quoted("expert L5E10 serves # %"), [cell.value]),
        (quoted("(95 % interval # to #)"), [cell.ci_low, cell.ci_high]),
        (quoted("and # % of all other text"), [cell.others]),
        (quoted("alone it would serve # % of"), [cell.by_token]),
        (quoted("it serves # % of them"), [cell.on_shared]),
    ]
    for said, found in measured:
        assert said == pytest.approx([100 * share for share in found], abs=0.1)
    bits = run.table("information").to_pandas().filter(like="_bits").mean()
    names = ["expert_token", "expert_domain", "expert_domain_given_token"]
    said = quoted("# bits about the token, # about the domain, and # about the domain when")
    assert said == pytest.approx([bits[f"i_{name}_bits"] for name in names], abs=0.01)


@pytest.mark.slow
def test_the_profile_that_the_how_to_shows_comes_out_in_the_precision_that_it_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its numbers are those of its own commands; sums in another order may turn a last digit."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "how-to" / "profile-an-expert.md"
    block = next(b for b in blocks_of(page) if "moescope demo" in b.text)
    for command in commands_of(block):
        app(shlex.split(command, comments=True)[1:], standalone_mode=False)
    printed = set(numbers(capsys.readouterr().out))
    shown = numbers(block.text.partition("L5E9\nL5E9 ")[2])
    near = [n for n in shown if not any(abs(n - m) <= 0.02 * abs(m) for m in printed)]
    assert len(shown) > 60
    assert len(near) <= 3, near


def numbers(text: str) -> list[float]:
    return [float(n.replace(",", "")) for n in re.findall(r"\d[\d,]*(?:\.\d+)?", text)]


def test_a_run_says_in_what_it_was_computed(tmp_path: Path) -> None:
    run = run_demo(tmp_path / "run", limit=40).run
    assert open_run(run.path).precision.startswith(run.manifest.model["dtype"] + " on ")
    assert "bfloat16 arithmetic" in run.precision or run.manifest.model["device"] != "cpu"
