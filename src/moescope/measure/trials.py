"""Run many edits over the same text and score each against the plain model.

One plain pass over a batch keeps what came out of the layers, and every trial computes only what
its edits can change (`moescope.measure.quick`). Whether that gives the same numbers as
whole passes is not assumed: in the first batch some trials are run both ways, and what does not
hold there is not used. One batch is in memory at a time; each result is on the disk before the next
is begun. What is tried, and what the sums mean, is for the callers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from moescope.errors import BadInputError
from moescope.measure.forward import fitting_batch
from moescope.measure.head import Head, PlainPass, plain_pass
from moescope.measure.journal import Journal
from moescope.measure.quick import QuickWay, lowest_layer
from moescope.measure.saving import Saving, saving_of
from moescope.measure.scoring import TokenDamage
from moescope.measure.windows import TextWindow, WindowBatch, window_batches
from moescope.memory import within_memory
from moescope.models.anatomy import MoELayer
from moescope.models.edits import Edit, check_edits
from moescope.models.experts import fast_experts
from moescope.models.loading import LoadedModel
from moescope.progress import OnProgress, Progress, quiet

_BATCH_TOKENS = 2048
_NAIVE_SAMPLES = 3
Floats = NDArray[np.float64]

Observe = Callable[[PlainPass], dict[str, Any]]


@dataclass(frozen=True)
class Trial:
    """Edits that are measured together, under a name."""

    name: str
    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class Measured:
    """Sums over the scored tokens of each window, of J trials and W windows.

    Attributes:
        tokens: scored tokens, (W,). ce: cross-entropy of the plain model, nats, (W,).
        ce_change, kl: nats, (J, W). flips: tokens whose preferred next token changed, (J, W).
        observed: what was made of each batch's plain pass.
        saving: what was computed and what was not.
        notes: what could not be used on this model, in words.
    """

    tokens: NDArray[np.int64]
    ce: Floats
    ce_change: Floats
    kl: Floats
    flips: Floats
    observed: list[dict[str, Any]]
    saving: Saving
    notes: list[str]


def batch_budget(loaded: LoadedModel, wanted: int | None = None) -> int:
    """Tokens of one batch: as wanted, or as many as keep its logits within 256 MiB."""
    return wanted or fitting_batch(4 * loaded.vocab_size, most=_BATCH_TOKENS)


class TrialRunner:
    """Measures trials on windows.

    Args:
        loaded: the model.
        windows: the text.
        layers: the MoE layers that trials edit, or whose routing ``observe`` reads.
        batch_tokens: see `batch_budget`.
        journal: where results are kept, and found again.
        observe: makes numbers (JSON) of each plain pass.
        on_progress: called after each trial of each batch.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        windows: Sequence[TextWindow],
        layers: Sequence[MoELayer],
        *,
        batch_tokens: int,
        journal: Journal,
        observe: Observe | None = None,
        on_progress: OnProgress = quiet,
    ) -> None:
        self._loaded, self._windows, self._layers = loaded, windows, layers
        self._journal, self._observe, self._on_progress = journal, observe, on_progress
        self._head = Head(loaded.model)
        self._batches = list(window_batches(windows, batch_tokens, pad_id=loaded.pad_id))
        self.quick = QuickWay(loaded, self._head)
        self._verified = False
        self._done = self._tokens = 0

    def run(self, trials: Sequence[Trial]) -> Measured:
        """Measure what the journal does not hold yet, batch by batch.

        Raises:
            BadInputError: an edit that this model cannot take, or text without a scored token.
            ModelError: an edit that the router refuses, or numbers that are not finite.
        """
        for trial in trials:
            check_edits(self._loaded.anatomy, trial.edits)
        self._total = len(trials) * len(self._batches)
        with fast_experts(self._loaded.model):
            for number, batch in enumerate(self._batches):
                with within_memory(batch.token_ids.size):
                    self._run_batch(number, batch, trials)
        return self._collect(trials)

    @torch.inference_mode()
    def _run_batch(self, number: int, batch: WindowBatch, trials: Sequence[Trial]) -> None:
        find = self._journal.find
        missing = [t for t in trials if find("trial", number, t.name) is None]
        known = find("plain", number)
        if missing or known is None:
            began = time.perf_counter()
            starts = self.quick.starts([t.edits for t in trials])
            plain = plain_pass(self._loaded, self._head, batch, self._layers, starts)
            if known is None:
                known = self._note_plain(number, plain, time.perf_counter() - began)
            if missing and len(plain.rows) and not self._verified:
                self._verify(plain, missing)
            for trial in missing:
                self._measure(number, plain, trial)
        self._advance(len(trials) - len(missing), sum(known["tokens"]))

    def _note_plain(self, number: int, plain: PlainPass, seconds: float) -> dict[str, Any]:
        every = torch.arange(len(plain.rows), device=plain.rows.device)
        tokens = _by_window(plain, every, torch.ones_like(plain.scores.ce))
        return self._journal.add(
            "plain",
            number,
            tokens=[int(t) for t in tokens],
            ce=_by_window(plain, every, plain.scores.ce),
            windows=len(tokens),
            batch_tokens=int(plain.batch.token_ids.size),
            num_layers=plain.resumable.num_layers,
            seconds=seconds,
            observed=self._observe(plain) if self._observe else {},
        )

    def _measure(self, number: int, plain: PlainPass, trial: Trial) -> None:
        began = time.perf_counter()
        quick = self.quick.measure(plain, trial.edits)
        sums: dict[str, Any] = {
            name: _by_window(plain, quick.reached, values)
            for name, values in zip(quick.damage._fields, quick.damage, strict=True)
        }
        seconds = time.perf_counter() - began
        self._journal.add("trial", number, trial.name, **sums, **quick.work, seconds=seconds)
        self._advance(1, len(plain.rows))

    def _advance(self, trials: int, tokens: int) -> None:
        self._done += trials
        self._tokens += trials * tokens
        if trials:
            total = self._tokens * self._total / self._done
            stage = f"measuring, {self._done}/{self._total} edited passes"
            self._on_progress(Progress(stage, self._tokens, total, "tokens"))

    def _verify(self, plain: PlainPass, trials: Sequence[Trial]) -> None:
        """On the first batch: what may be left out of a pass, and how long a whole one takes."""
        self._verified = True
        quick = self.quick
        quick.try_starts(plain, quick.starts([t.edits for t in trials]))
        step = max(1, len(trials) // _NAIVE_SAMPLES)
        by_reach = sorted(trials, key=lambda t: quick.reach(plain, t.edits))
        one_each = {lowest_layer(t.edits): t for t in by_reach}.values()  # of each, the widest
        samples = {t.name: t for t in (*one_each, *trials[::step][:_NAIVE_SAMPLES])}
        for place, trial in enumerate(samples.values()):
            known = self._journal.find("naive", place)
            if known is None:
                made = quick.try_out(plain, trial.edits)
                made |= {"takes_off": quick.takes_off, "skips": quick.skips}
                known = self._journal.add("naive", place, trial=trial.name, **made)
            quick.takes_off &= bool(known["takes_off"])
            quick.skips &= bool(known["skips"])

    # -- results

    def _collect(self, trials: Sequence[Trial]) -> Measured:
        count = len(self._windows)
        tokens, ce = np.zeros(count, np.int64), np.zeros(count)
        sums = {n: np.zeros((len(trials), count)) for n in TokenDamage._fields}
        plain, records = [], []
        for number, batch in enumerate(self._batches):
            known = self._found("plain", number)
            plain.append(known)
            tokens[batch.rows], ce[batch.rows] = known["tokens"], known["ce"]
            for j, trial in enumerate(trials):
                record = self._found("trial", number, trial.name)
                records.append(record)
                for name, array in sums.items():
                    array[j, batch.rows] = record[name]
        if not tokens.sum():
            raise BadInputError(
                "the text has no token with a next one, so nothing is predicted; give longer text"
            )
        naive: list[dict[str, Any]] = []
        while (sample := self._journal.find("naive", len(naive))) is not None:
            naive.append(sample)
        saving = saving_of(records, plain, naive)
        observed = [p["observed"] for p in plain]
        return Measured(
            tokens, ce, **sums, observed=observed, saving=saving, notes=_notes(saving, naive)
        )

    def _found(self, *key: str | int) -> dict[str, Any]:
        record = self._journal.find(*key)
        assert record is not None, key
        return record


def _by_window(plain: PlainPass, index: torch.Tensor, values: torch.Tensor) -> list[float]:
    """Sums over each window of the batch, (B,), of values of the scored tokens at these places."""
    rows, length = plain.shape
    sums = torch.zeros(rows, dtype=values.dtype, device=values.device)
    made: list[float] = sums.index_add_(0, plain.rows[index] // length, values).cpu().tolist()
    return made


def _notes(saving: Saving, naive: Sequence[dict[str, Any]]) -> list[str]:
    notes = []
    if saving.full_passes:
        notes.append(
            "A pass that starts in the middle gives other numbers on this model than a whole one, "
            "so every edit was measured with full passes."
        )
    if any(not n["skips"] for n in naive):
        notes.append(
            "On this model tokens that chose no edited expert changed too, so none were skipped."
        )
    return notes
