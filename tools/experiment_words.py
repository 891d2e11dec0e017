"""How the figures of experiments are called and written, and the sentences that follow from them.

A sentence depends on an interval alone: which side of 0 it lies on, or that it holds 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["MEASURES", "PROFILES", "Measure", "apart", "difference", "estimate", "verdict"]

_MINUS = "−"

Estimate = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """How a figure is called and written.

    Attributes:
        label: in tables and sentences. digits: after the point. percent: a share, times 100.
        about: what it is, for the list above the table.
    """

    label: str
    about: str
    digits: int = 3
    percent: bool = False


MEASURES = {
    "heldout_loss": Measure(
        "held-out loss",
        "nats per token, mean of the domains, routed as the saved model routes: without noise and "
        "without a capacity limit",
    ),
    "heldout_loss_limited": Measure(
        "held-out loss, limited", "the same with the capacity factor of the training"
    ),
    "cv": Measure("CV", "standard deviation over mean of the experts' load in a batch"),
    "max_violation": Measure("MaxVio", "load of the busiest expert over the mean, less 1"),
    "load_entropy": Measure("load entropy", "H(load) / log E, 1 when even"),
    "router_entropy": Measure("router entropy", "H(router's distribution) / log E"),
    "dead_share": Measure("dead", "share of experts that no token of a batch chose", 1, True),
    "dead_share_worst": Measure("dead, worst layer", "the same in the worst layer", 1, True),
    "dropped_share": Measure("dropped", "share of assignments that no expert computed", 2, True),
    "rerouted_share": Measure("rerouted", "share that another expert computed", 2, True),
    "model_cv": Measure("saved model: CV", "CV of the saved model on held-out text"),
    "model_max_violation": Measure("saved model: MaxVio", "MaxVio of the same"),
    "model_load_entropy": Measure("saved model: load entropy", "load entropy of the same"),
    "model_dead_share": Measure(
        "saved model: dead", "share of experts with less than 0.1 % of its assignments", 1, True
    ),
    "model_dead_share_worst": Measure(
        "saved model: dead, worst layer", "the same in the worst layer", 1, True
    ),
    "info_domain_bits": Measure(
        "I(E;D), bits", "what the expert says about the domain, less its shuffled null", 4
    ),
    "info_domain_given_token_bits": Measure(
        "I(E;D|X), bits", "the same once the token id is known", 4
    ),
    "info_token_bits": Measure("I(E;X), bits", "what the expert says about the token id", 4),
    "largest_lift": Measure(
        "largest lift",
        "each expert's largest finite lift over the domains, mean of the experts; 1 without "
        "specialization, more by sampling noise alone",
        2,
    ),
    "specialized_cells": Measure(
        "cells q < 0.05",
        "share of layer × expert × domain cells whose rate differs from the other domains",
        1,
        True,
    ),
}

PROFILES = {
    "cv_by_step": Measure("CV by step", "CV of the load"),
    "dropped_by_position": Measure(
        "Dropped share by the first position of a bin, last step, %", "", 1, True
    ),
    "info_domain_by_layer": Measure("I(E;D) by layer, bits", "", 4),
    "info_domain_given_token_by_layer": Measure("I(E;D|X) by layer, bits", "", 4),
    "info_token_by_layer": Measure("I(E;X) by layer, bits", "", 4),
}


def number(value: float, measure: Measure, digits: int | None = None, *, sign: bool = False) -> str:
    """A figure as it is written: percent without the sign, a true minus."""
    scaled = value * 100 if measure.percent else value
    text = f"{scaled:{'+' if sign else ''}.{measure.digits if digits is None else digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", _MINUS)


def estimate(found: Estimate | None, measure: Measure) -> str:
    """``mean [low, high]``; a dash where nothing was measured."""
    if not found or found["mean"] is None:
        return "–"
    mean = number(found["mean"], measure)
    if found["low"] is None:
        return mean
    return f"{mean} [{number(found['low'], measure)}, {number(found['high'], measure)}]"


def difference(found: Estimate, measure: Measure) -> str:
    """The same with signs, and digits enough to see on which side of 0 an interval lies."""
    if found["low"] is None:
        return number(found["mean"], measure, sign=True)
    digits = measure.digits
    ends = (found["low"], found["high"])
    scale = 100 if measure.percent else 1
    while any(end and round(end * scale, digits) == 0 for end in ends) and apart(found):
        digits += 1
    mean, low, high = (number(v, measure, digits, sign=True) for v in (found["mean"], *ends))
    return f"{mean} [{low}, {high}]"


def apart(found: Estimate) -> bool:
    """Whether the interval leaves out 0."""
    return found["low"] is not None and (found["low"] > 0 or found["high"] < 0)


def verdict(found: Estimate | None, measure: Measure) -> str:
    """What a paired difference says, by rule from its interval."""
    if not found or found["mean"] is None:
        return f"{measure.label}: not measured in both"
    size = f"difference {difference(found, measure)}{' points' if measure.percent else ''}"
    n = found["n"]
    if found["low"] is None:
        return f"{measure.label}: {size}, from one seed, so without an interval"
    if found["lower"] == found["higher"] == 0:
        return f"{measure.label}: the same in all {n} seeds"
    if not apart(found):
        return f"{measure.label}: not told apart, {size}"
    side = "lower" if found["mean"] < 0 else "higher"
    count = "all" if found[side] == n else f"{found[side]} of"
    return f"{measure.label}: {side} in {count} {n} seeds, {size}"
