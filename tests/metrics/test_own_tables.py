"""Tables: described where they are made, and added by other packages."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.packages import install

from moescope.cli.main import app
from moescope.errors import BadInputError, RunError
from moescope.metrics.runs import AnalyzedRun, open_run, table_names
from moescope.metrics.table import COMMON, table
from moescope.metrics.tables import TABLES, every_table
from moescope.metrics.view import ALL, PhaseView, Rows

HEAD = """
from moescope.metrics.table import Column, table
from moescope.metrics.view import PhaseView, Rows
"""
TOP_SHARE = (
    HEAD
    + '''
@table("top_share", columns={"share": Column("the largest load", chance="1/E")})
def top_share(view: PhaseView) -> Rows:
    """How much of a layer's work its busiest expert does."""
    rows = Rows()
    for layer in view.layers:
        counts_E = view.counts(layer).sum(0)
        rows.add(layer=layer.layer_idx, share=counts_E.max() / counts_E.sum())
    return rows
'''
)
Install = Callable[..., None]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that Python finds packages in."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "site"
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.fixture
def run(tiny_run: AnalyzedRun, tmp_path: Path) -> AnalyzedRun:
    """A copy, so that tables are kept in it only."""
    return open_run(shutil.copytree(tiny_run.path, tmp_path / "run"))


def forget(module: str) -> None:
    """As a new process would begin."""
    sys.modules.pop(module, None)


class TestMoescopesOwn:
    @pytest.mark.parametrize("name", TABLES)
    def test_every_column_is_described_and_every_described_column_is_there(
        self, name: str, tiny_run: AnalyzedRun
    ) -> None:
        made = set(tiny_run.table(name).column_names)
        assert made - set(COMMON) <= set(TABLES[name].columns) <= made

    def test_a_name_need_or_docstring_of_another_form_is_refused(self) -> None:
        def silent(view: PhaseView) -> Rows:
            return Rows()

        for name, needs in (("Top Share", None), ("../load", None), ("top", "everything")):
            with pytest.raises(BadInputError, match="@table"):
                table(name, columns={}, needs=needs)
        with pytest.raises(BadInputError, match="docstring"):
            table("top", columns={})(silent)


def test_a_sum_or_domain_of_no_such_name_is_refused_with_what_is_near(
    tiny_run: AnalyzedRun,
) -> None:
    """A slip in a name gave NaN for every expert, as if the run did not know."""
    view = PhaseView(tiny_run, "prefill")
    layer, domain = view.layers[0], view.domains[0]
    for name, group, said in (
        ("gate_mas", domain, "sum by domain 'gate_mas'; did you mean gate_mass"),
        ("cluster_counts", domain, "sum by domain 'cluster_counts'"),
        ("gate_mass", domain[:-1], f"domain .{domain[:-1]}.; did you mean .*{domain}"),
    ):
        with pytest.raises(BadInputError, match=said):
            view.by_domain(name, layer, group)
    assert view.by_domain("gate_mass", layer, ALL).sum() > 0


class TestOfAnotherPackage:
    def test_it_is_listed_made_kept_and_described(
        self, site: Path, run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        install(site, "own_tables", TOP_SHARE)
        assert table_names() == [*TABLES, "top_share"]
        made = run.table("top_share").to_pandas()
        load = run.table("load").to_pandas()
        largest = load[load.domain == "all"].groupby(["phase", "layer"]).load.max()
        assert made.set_index(["phase", "layer"]).share.sort_index().tolist() == pytest.approx(
            largest.sort_index().tolist()
        )
        assert (run.path / "tables" / "top_share.parquet").is_file()
        app(["table", str(run.path), "--format", "csv"], standalone_mode=False)
        assert "top_share,How much of a layer's work its busiest expert does\n" in (
            capsys.readouterr().out
        )
        app(["table", str(run.path), "top_share", "--about"], standalone_mode=False)
        about = capsys.readouterr().out
        assert "share: the largest load; chance: 1/E" in about
        assert f"layer: {COMMON['layer']}" in about

    def test_an_entry_point_may_name_one_table(self, site: Path) -> None:
        install(site, "own_tables", TOP_SHARE, entry="own_tables:top_share")
        assert "top_share" in table_names()

    def test_it_is_made_again_when_the_package_has_another_version_or_other_code(
        self, site: Path, run: AnalyzedRun
    ) -> None:
        install(site, "own_tables", TOP_SHARE)
        first = run.table("top_share")
        file = run.path / "tables" / "top_share.parquet"
        kept = file.read_bytes()
        forget("own_tables")
        halved = TOP_SHARE.replace("counts_E.max()", "counts_E.max() / 2")
        assert run.table("top_share").equals(first)
        assert file.read_bytes() == kept
        install(site, "own_tables", halved)
        forget("own_tables")
        second = run.table("top_share")
        assert second["share"].to_pylist() == [s / 2 for s in first["share"].to_pylist()]
        kept = file.read_bytes()
        install(site, "own_tables", halved, version="0.2")
        assert run.table("top_share").equals(second)
        assert file.read_bytes() != kept

    def test_one_that_this_run_cannot_know_is_refused(
        self, site: Path, run: AnalyzedRun, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        code = TOP_SHARE.replace('@table("top_share", ', '@table("top_share", needs="weights", ')
        install(site, "own_tables", code)
        monkeypatch.setattr(AnalyzedRun, "absent", {"weights": "no engine told them"})
        with pytest.raises(RunError, match="no engine told them"):
            run.table("top_share")


BROKEN = {
    "does not import": ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
    "imports what is not there": ("import no_such_module", "ModuleNotFoundError: No module named"),
    "has no table": ("x = 1", "holds no table"),
    "takes a name": (
        TOP_SHARE.replace('"top_share"', '"load"'),
        "moescope has a table 'load' already",
    ),
    "has a bad name": (TOP_SHARE.replace('"top_share"', '"Top"'), "a name is lower-case letters"),
}


class TestOfAPackageThatFails:
    @pytest.mark.parametrize("what", BROKEN)
    def test_it_is_said_in_one_line_and_takes_nothing_else_along(
        self, what: str, site: Path, run: AnalyzedRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, why = BROKEN[what]
        install(site, "own_broken", code)
        install(site, "own_tables", TOP_SHARE)
        known, problems = every_table()
        assert list(known) == [*TABLES, "top_share"]
        (line,) = problems
        assert line.startswith("entry point own = own_broken of own_broken 0.1 (moescope.tables)")
        assert why in line
        assert "\n" not in line
        assert run.table("load").num_rows
        assert run.table("top_share").num_rows
        app(["table", str(run.path), "--format", "csv"], standalone_mode=False)
        shown = capsys.readouterr()
        assert len(shown.out.splitlines()) == 1 + len(TABLES) + 1
        assert shown.err == f"left out: {line}\n"

    def test_a_table_that_it_may_have_had_is_asked_for(self, site: Path, run: AnalyzedRun) -> None:
        install(site, "own_broken", "1 / 0")
        with pytest.raises(BadInputError, match=r"no table 'top_share'; .*own_broken 0.1.*Zero"):
            run.table("top_share")

    def test_two_packages_with_one_name(self, site: Path) -> None:
        install(site, "own_a", TOP_SHARE)
        install(site, "own_b", TOP_SHARE)
        known, problems = every_table()
        assert known["top_share"].package == "own_a 0.1"
        assert "own_b 0.1" in problems[0]
        assert "own_a 0.1 has a table 'top_share' already" in problems[0]

    @pytest.mark.parametrize(
        ("instead", "why"),
        [
            ("share=1 / 0", "ZeroDivisionError: division by zero"),
            ("other=0.5", "gives a column 'other' that its @table does not name"),
            ("share=[1.0, 2.0], layer_b=0", "'layer_b'"),
        ],
    )
    def test_a_table_that_cannot_be_made(
        self, instead: str, why: str, site: Path, run: AnalyzedRun
    ) -> None:
        code = TOP_SHARE.replace("share=counts_E.max() / counts_E.sum()", instead)
        install(site, "own_tables", code)
        with pytest.raises(BadInputError) as error:
            run.table("top_share")
        assert "table 'top_share' of own_tables 0.1 cannot be made" in str(error.value)
        assert why in str(error.value)
        assert not (run.path / "tables" / "top_share.parquet").exists()
        assert run.table("load").num_rows

    def test_a_damaged_run_is_not_blamed_on_the_package(self, site: Path, run: AnalyzedRun) -> None:
        code = TOP_SHARE.replace("    rows = Rows()", "    rows = Rows()\n    view.run.documents")
        install(site, "own_tables", code)
        (run.path / run.manifest.documents[0].file).write_bytes(b"torn")
        with pytest.raises(RunError) as error:
            run.table("top_share")
        assert "own_tables" not in str(error.value)

    def test_no_rows_at_all_and_columns_of_unlike_lengths(
        self, site: Path, run: AnalyzedRun
    ) -> None:
        uneven = TOP_SHARE.replace("    return rows", "        rows.add(layer=1)\n    return rows")
        install(site, "own_tables", uneven)
        with pytest.raises(BadInputError, match="columns differ in length"):
            run.table("top_share")
        forget("own_tables")
        nothing = TOP_SHARE.replace("    return rows", "    return None")
        install(site, "own_tables", nothing, version="0.2")
        with pytest.raises(BadInputError, match="AttributeError"):
            run.table("top_share")
