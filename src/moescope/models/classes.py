"""Which of transformers' classes reads a configuration as a model that writes text.

Most are causal language models. A model that also sees or hears is taken whole and given text
alone: its text part runs as in the larger model, with the weights and numbers that it has there.
"""

from __future__ import annotations

from typing import Any

from moescope.errors import ModelError
from moescope.models.anatomy import refuse_type


def auto_class(model: str, config: Any) -> Any:
    """The auto class of transformers that builds and loads this model.

    Raises:
        ModelError: transformers knows the type, but not as a model that writes text; or the type
            cannot be read honestly.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    for part in (config, config.get_text_config()):  # before a module is built
        refuse_type(str(getattr(part, "model_type", "")))
    if hasattr(config, "auto_map"):  # its own code says what it is
        return AutoModelForCausalLM
    for found in (AutoModelForCausalLM, AutoModelForMultimodalLM):
        if type(config) in found._model_mapping:
            return found
    raise ModelError(  # their own refusal imports every model there is
        f"{model} is of type {config.model_type!r}, which transformers knows, but not as "
        "a causal language model; give an MoE model such as allenai/OLMoE-1B-7B-0924"
    )
