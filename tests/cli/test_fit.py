"""A table fits its terminal: no number is broken, nothing needed is missing, names differ."""

import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from moescope.cli import ablate_cmd, inspect_cmd, similarity_cmd, tables
from moescope.cli.fit import GAP, Head, Layout, fit, folded, shortened
from moescope.cli.settings import ColumnsArgs, FormatArgs, WideArgs
from moescope.cli.tables import Sheet, heads_of, print_table
from moescope.cli.terminal import CleanConsole
from moescope.metrics.runs import COMPARED, AnalyzedRun, compare_runs
from moescope.metrics.table import COMMON
from moescope.metrics.tables import TABLES

WIDTHS = (60, 80, 120)


class Seen:
    """What was printed on a terminal of some width, or to a file, and how it was laid out."""

    def __init__(self, width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out, self.err = io.StringIO(), io.StringIO()
        consoles = [
            CleanConsole(
                file=file, width=width or 80, force_terminal=width is not None, color_system=None
            )
            for file in (self.out, self.err)
        ]
        for name, console in zip(("output", "errors"), consoles, strict=True):
            monkeypatch.setattr(tables, name, console)
        monkeypatch.setattr(tables, "fit", self.fit)

    def fit(self, heads: Sequence[Head], cells: Any, width: int | None, **how: Any) -> Layout:
        self.heads, self.cells = heads, cells
        self.layout = fit(heads, cells, width, **how)
        return self.layout

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().splitlines()

    @property
    def shown(self) -> set[str]:
        return {h.name for i, h in enumerate(self.heads) if i not in self.layout.left_out}

    def assert_whole(self, width: int) -> None:
        """No line is too long, and each number stands in its row as it is."""
        assert max(map(cell_len, self.lines)) <= width
        body = [line for line in self.lines if "─" not in line]
        for i, head in enumerate(self.heads):
            if head.kind == "number" and i not in (*self.layout.left_out, *self.layout.same):
                for cell in self.cells[i]:
                    assert any(cell.plain in re.split(r"\s{2,}|^ | $", line) for line in body)
                    assert cell_len(cell.plain) <= self.layout.widths[i]
            if head.kind == "name" and i in self.layout.widths:
                plain = [c.plain for c in self.cells[i]]
                cut = shortened(plain, self.layout.widths[i])
                assert len(set(cut)) == len(set(plain))


def must_be_shown(heads: Sequence[Head], first: str | None, shown: set[str]) -> set[str]:
    """Keys, q and the like, the sorted column, and what says more of a column that is shown."""
    must = {h.name for h in heads if h.key or h.keep or h.of in shown}
    return must | ({first} if first else set())


Screen = Callable[[int | None], Seen]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    return lambda width: Seen(width, monkeypatch)


class TestEveryTable:
    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("name", TABLES)
    def test_of_a_run_breaks_no_number_and_keeps_what_it_must(
        self, name: str, width: int, tiny_run: AnalyzedRun, screen: Screen
    ) -> None:
        data, known = tiny_run.table(name).slice(0, 30), TABLES[name]
        heads = heads_of(data, known.columns, known.meaning)
        for first in (None, *data.column_names[:: 1 + len(heads) // 6]):
            seen = screen(width)
            print_table(data, FormatArgs(), heads=heads, first=first)
            seen.assert_whole(width)
            assert must_be_shown(seen.heads, first, seen.shown) <= seen.shown

    @pytest.mark.parametrize("width", WIDTHS)
    def test_of_two_runs_does(self, width: int, tiny_run: AnalyzedRun, screen: Screen) -> None:
        data = compare_runs(tiny_run, tiny_run).slice(0, 30)
        seen = screen(width)
        heads = heads_of(data, COMPARED, (COMMON | COMPARED).__getitem__)
        print_table(data, FormatArgs(), heads=heads)
        seen.assert_whole(width)
        assert {"saturation", "ci_low", "ci_high", "chance", "layer", "domain"} <= seen.shown

    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize(
        "heads",
        [
            ablate_cmd._PLAN_COLUMNS, ablate_cmd._EACH_COLUMNS, ablate_cmd._RHO_COLUMNS,
            similarity_cmd._HEADS, inspect_cmd._HEADS,
        ],
    )  # fmt: skip
    def test_of_a_verb_does(self, heads: dict[str, Head], width: int, screen: Screen) -> None:
        """With numbers as long as they come, and names that differ in the middle alone."""
        seen = screen(width)
        sheet = Sheet("", *heads.values())
        for n in range(8):
            row = [
                f"off target: support_{n}_coordination: all others"
                if h.kind == "name"
                else -0.0009481 * 1.7**n
                for h in heads.values()
            ]
            sheet.add(*row)
        sheet.print(FormatArgs(), on=tables.output)
        seen.assert_whole(width)
        assert must_be_shown(seen.heads, None, seen.shown) <= seen.shown

    def test_has_chances_and_intervals_that_go_with_what_they_are_of(self) -> None:
        for name, known in TABLES.items():
            for column, what in known.columns.items():
                assert what.of in known.columns or not what.of, (name, column)
                if what.chance in known.columns:
                    assert known.columns[what.chance].of == column, (name, column)
                if column == "q":
                    assert what.keep
                    assert what.small


def printed(screen: Screen, width: int | None, form: WideArgs | None = None, rows: int = 3) -> Seen:
    """A table of two keys and ten figures, of which one is left out first."""
    seen = screen(width)
    sheet = Sheet(
        "t", "<domain", "value", Head("low", of="value"), *(f"more_{n}" for n in range(9))
    )
    for n in range(rows):
        sheet.add(f"domain_{n}", 0.25 + n, 0.1 + n / 7, *(n + i / 7 for i in range(9)))
    sheet.print(form, on=tables.output)
    return seen


def test_one_layout_for_one_row_and_for_many(screen: Screen) -> None:
    for rows in (1, 2, 6, 7, 40):
        seen = printed(screen, 60, rows=rows)
        assert seen.lines[1].split()[:2] == ["domain", "value"]
        assert len(seen.lines) == 3 + rows


def test_what_is_left_out_is_said_and_how_to_see_it(screen: Screen) -> None:
    said = printed(screen, 60, ColumnsArgs()).err.getvalue()
    assert said.startswith("left out, for want of room: more_")
    assert said.count("\n") == 1
    # as settings, or as the flags of a verb that was made before
    assert re.search("(`wide`|--wide) shows all, (`columns`|--columns) chooses\n$", said)
    assert "columns" not in printed(screen, 60, WideArgs()).err.getvalue()


def test_wide_chosen_and_piped_tables_have_all_columns(screen: Screen) -> None:
    for width, form in ((60, FormatArgs(wide=True)), (None, FormatArgs()), (None, None)):
        seen = printed(screen, width, form)
        assert seen.err.getvalue() == ""
        assert len({*map(len, seen.lines[1:])}) == 1
        assert "more_8" in seen.lines[1]
    data = pa.table({f"column_{n}": [n / 7] for n in range(12)})
    chosen = tuple(f"column_{n}" for n in (11, 2, 3, 4, 5, 6, 7, 8, 9, 10))
    seen = screen(60)
    print_table(data, ColumnsArgs(columns=chosen))
    seen.assert_whole(60)
    assert [h.name for h in seen.heads] == list(chosen)
    assert seen.layout.left_out == []


def test_numbers_of_a_column_have_as_many_digits_as_they_all_need() -> None:
    def shown(*values: Any) -> list[str]:
        return [c.plain for c in tables._texts(Head("x"), values, 4)]

    assert shown(0.25, 0.125, float("nan"), 0.0) == ["0.250", "0.125", "–", "0"]
    assert shown(-0.0009481, 12.3456, 1e-7) == ["-0.0009481", "12.35", "1.000e-07"]
    assert shown(5e-05, 0.002) == ["5e-05", "0.002"]
    assert shown(1.0, 2.0, 30.0) == ["1", "2", "30"]
    assert shown(9_999, 10_000, None) == ["9,999", "10,000", "–"]
    assert shown(9_999, 12) == ["9999", "12"]
    percent = tables._texts(Head("x", percent=True), [0.1234, 0.005, 0.5], 3)
    assert [c.plain for c in percent] == ["12.3 %", "0.500 %", "50.0 %"]


def test_json_has_null_for_what_is_no_number_however_deep(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tables.write_json({"a": float("nan"), "b": [float("-inf"), {"c": (1.5, float("inf"))}]})
    assert capsys.readouterr().out == '{"a": null, "b": [null, {"c": [1.5, null]}]}\n'


def test_a_control_character_is_escaped_before_lines_are_made() -> None:
    """It takes more room than it had: what was made to fit would be cut."""
    file = io.StringIO()
    console = CleanConsole(file=file, width=30, force_terminal=True, color_system=None)
    sentence = "serves d\x1b]0;x\x1b[2J\x9b31m and no other domain of this run"
    console.print(sentence)
    console.print(Text(sentence, "bold"))
    whole = "".join(file.getvalue().split())
    assert whole.count("otherdomainofthisrun") == 2
    assert whole.count(r"\x1b]0;x\x1b[2J\x9b31m") == 2
    assert max(map(len, file.getvalue().splitlines())) <= 30


NAMES = st.lists(st.text("abAB_ é日…", min_size=1, max_size=40), min_size=1, max_size=12)


@given(NAMES, st.integers(6, 30))
@settings(deadline=None)
def test_names_that_differ_look_different(names: list[str], width: int) -> None:
    cut = shortened(names, width)
    assert all(cell_len(c) <= width for c in cut)
    assert len(set(cut)) == len(set(names))
    assert all(c == n for c, n in zip(cut, names, strict=True) if cell_len(n) <= width)


@given(st.text("ab -_\n0.12é日", max_size=60), st.integers(2, 20))
@settings(deadline=None)
def test_folding_loses_nothing_but_the_spaces_at_the_ends_of_lines(text: str, width: int) -> None:
    made = folded(Text(text), width).plain
    assert all(cell_len(line.rstrip()) <= width for line in made.split("\n"))
    assert "".join(made.split()) == "".join(text.split())


@st.composite
def sheets(draw: st.DrawFn) -> tuple[list[Head], list[list[str]]]:
    """Columns of every kind; at most two keys, as no terminal holds twenty."""
    rows = draw(st.integers(1, 4))
    heads, cells = [Head("key", "name", key=True)], [[f"name number {n}" for n in range(rows)]]
    for n in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["number", "name", "words"]))
        of = draw(st.sampled_from(["", *(h.name for h in heads[1:] if not h.of)]))
        name = draw(st.text("ab_", min_size=1, max_size=18)) + str(n)
        heads.append(Head(name, kind, keep=draw(st.booleans()), of=of))
        letters = "0123456789" if kind == "number" else "abc d"
        cells.append([draw(st.text(letters, min_size=1, max_size=14)) for _ in range(rows)])
    return heads, cells


@given(sheets(), st.sampled_from([40, *WIDTHS]), st.booleans())
@settings(deadline=None, max_examples=200)
def test_any_table_fits_and_keeps_what_it_must(
    sheet: tuple[list[Head], list[list[str]]], width: int, drop: bool
) -> None:
    heads, cells = sheet
    texts = [[Text(c) for c in own] for own in cells]
    made = fit(heads, texts, width, drop=drop)
    shown = {h.name for i, h in enumerate(heads) if i not in made.left_out}
    assert must_be_shown(heads, None, shown) <= shown
    for block in made.blocks:
        assert sum(made.widths[i] for i in block) + GAP * (len(block) - 1) <= width
        assert 0 in block or 0 in made.same
    placed = [i for block in made.blocks for i in block if i] + made.same + made.left_out
    assert sorted({*placed, 0}) == list(range(len(heads)))
    for i, head in enumerate(heads):
        if head.kind == "number" and i in made.widths:
            assert made.widths[i] >= max(len(c) for c in cells[i])
