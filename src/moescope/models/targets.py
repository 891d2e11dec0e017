"""Which stored tensors make which parameter, and in which dtype: as transformers' loading decides.

Its rules are private, so they are asked for here and nowhere else. It knows names, not files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import deepcopy
from typing import Any

import torch

from moescope.models.stored import Target


def targets_of(model: Any, keys: Iterable[str]) -> dict[str, Target]:
    """Every parameter and buffer that these stored tensors make, in the order of the tensors."""
    names = model.state_dict(keep_vars=True)
    found: dict[str, Target] = {}
    for key, name, pattern, converter in _renamed(model, keys):
        if name not in names:
            continue  # what transformers leaves out too, such as a multi-token head
        for made in made_together(name, converter):
            target = found.setdefault(made, Target())
            if converter is not None and target.converter is None:
                target.converter = deepcopy(converter)
            target.sources.append((key, pattern or key))
    return found


def made_together(name: str, converter: Any) -> list[str]:
    """The parameters that one conversion makes, such as the pieces of a fused matrix."""
    several = [] if converter is None else converter.target_patterns
    here = max((part for part in several if part in name), key=len, default=None)
    if here is None:
        return [name]
    before, _, behind = name.partition(here)
    return [f"{before}{part}{behind}" for part in several]


def loaded_names(model: Any, keys: Iterable[str]) -> dict[str, str]:
    """What transformers calls these stored tensors while it loads them."""
    return {key: name for key, name, _, _ in _renamed(model, keys)}


def _renamed(model: Any, keys: Iterable[str]) -> Iterable[tuple[str, str, str | None, Any]]:
    """Stored name, name in the model, the pattern that it fits, and who converts it."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    mapping = get_model_conversion_mapping(model)
    renamings = [w for w in mapping if isinstance(w, WeightRenaming)]
    converters = [w for w in mapping if isinstance(w, WeightConverter)]
    by_pattern = {p: c for c in converters for p in c.source_patterns}
    prefix, names = model.base_model_prefix, model.state_dict(keep_vars=True)
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if name not in names and key in names:
            name, pattern = rename_source_key(key, [], [], prefix, names)
        yield key, name, pattern, None if pattern is None else by_pattern[pattern]


def kept_wide(model: Any, dtype: torch.dtype) -> re.Pattern[str] | None:
    """Which parameters the family has loaded in float32 whatever ``dtype`` is asked for.

    A selection bias near 12 has steps of 1/16 in bfloat16: other experts would be chosen.
    """
    from transformers.core_model_loading import build_glob_alternation

    plan = model._get_dtype_plan(dtype)
    made: re.Pattern[str] | None = build_glob_alternation(list(plan))[0] if plan else None
    return made
