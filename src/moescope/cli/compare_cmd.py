"""`moescope compare`: two runs over the same text token by token, or training runs side by side."""

from __future__ import annotations

from typing import Annotated

from moescope.cli.settings import ColumnsArgs
from moescope.cli.tables import heads_of, print_table
from moescope.cli.terminal import errors, output
from moescope.cli.verb import Argument, Flag, note, verb
from moescope.errors import BadInputError


class CompareArgs(ColumnsArgs):
    """Everything that `compare` can be told."""

    run_a: Annotated[str, Argument("RUN")]
    """run folder"""
    run_b: Annotated[str, Argument("RUN")]
    """run folder"""
    more: Annotated[tuple[str, ...], Argument("RUN...")] = ()
    """further folders of moescope train"""
    out: Annotated[str | None, Flag("-o")] = None
    """training runs: HTML page to write"""


@verb()
def compare(settings: CompareArgs) -> None:
    """Compare two runs over the same text token by token, or any number of training runs.

    Runs of trace or analyze: router saturation and agreement (two checkpoints, say). Runs of
    train: the settings that differ and how each run ended; -o writes a page with their curves.

    Example: moescope compare no-balancing load-balancing noisy-topk -o compared.html
    """
    from moescope.training.compare import is_training

    folders = (settings.run_a, settings.run_b, *settings.more)
    if any(map(is_training, folders)):
        _compare_trainings(folders, settings)
        return
    if settings.more or settings.out:
        raise BadInputError(
            "more than two runs, and `out`, are for folders of moescope train; none of these is one"
        )
    from moescope.metrics.runs import COMPARED, compare_runs, open_run
    from moescope.metrics.table import COMMON

    made = compare_runs(open_run(settings.run_a), open_run(settings.run_b))
    heads = heads_of(made, COMPARED, (COMMON | COMPARED).__getitem__)
    print_table(made, settings, heads=heads)


def _compare_trainings(folders: tuple[str, ...], settings: CompareArgs) -> None:
    from moescope.training.compare import compare_trainings

    made = compare_trainings(folders)
    print_table(made.table(), settings)
    for remark in made.remarks():
        note(remark)
    if settings.out is not None:
        from moescope.report.trainings_page import write_trainings_page

        page = write_trainings_page(made, settings.out)
        (output if settings.format == "table" else errors).print(str(page), soft_wrap=True)
