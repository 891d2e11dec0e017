"""From a hub id or a folder to a model that is ready to be read, or to its anatomy alone.

`load_model` brings weights into memory; `load_meta` builds the same modules without weights, for
`moescope inspect`. Every way in which loading fails ends in one line that says what to do. Pickle
files are refused: only safetensors are read.
"""

from __future__ import annotations

import hashlib
import platform
from dataclasses import dataclass
from html import escape
from typing import Any

import torch
from torch import nn

from moescope.errors import ModelError
from moescope.kernels import keep_few_kernels
from moescope.memory import machine_memory, parse_memory, readable
from moescope.models.anatomy import Anatomy
from moescope.models.checks import (
    name_misfit,
    refuse_foreign_ids,
    refuse_giant,
    refuse_partial,
    refuse_quantised,
)
from moescope.models.classes import auto_class
from moescope.models.config_files import CONFIG, WEIGHTS
from moescope.models.experts import sorts_experts
from moescope.models.memory import free_memory, plan_streaming, resident_need
from moescope.models.outline import Check, Outline, anything
from moescope.models.probe import find_anatomy
from moescope.models.scales import (
    refuse_left_out,
    refuse_parts_of_blocks,
    refuse_unscaled,
    require_packages,
)
from moescope.models.source import (
    checkpoint_folder,
    config_hash,
    guard,
    load_config,
    load_tokenizer,
    pinned,
    text_hash,
)
from moescope.models.spec import AnySpec, EngineName, ModelSpec, as_spec
from moescope.models.stored import checkpoint_files
from moescope.models.streaming import StreamedModel
from moescope.progress import OnProgress, quiet

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory with its tokenizer and anatomy."""

    spec: ModelSpec
    model: nn.Module
    tokenizer: Any
    anatomy: Anatomy
    config_hash: str
    tokenizer_hash: str
    weights_hash: str
    dtype: str
    stored_dtype: str
    device: str
    revision: str | None
    streamed: StreamedModel | None = None

    def __repr__(self) -> str:
        name = self.spec.model.rstrip("/").rpartition("/")[2]
        return f"<LoadedModel {name}: {self.anatomy.in_words}, {self.dtype} on {self.device}>"

    def _repr_html_(self) -> str:
        hashes = ", ".join(
            f"{what} {str(getattr(self, f'{what}_hash'))[:12]}"
            for what in ("config", "tokenizer", "weights")
        )
        return f"<p>{escape(repr(self))}</p><p>{hashes}</p>"

    @property
    def is_changed(self) -> bool:
        """Are its weights others than when it was opened, as far as their fingerprint shows?"""
        return self.streamed is None and weights_fingerprint(self.model) != self.weights_hash

    @property
    def vocab_size(self) -> int:
        """Token ids that the model knows: the rows of its embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]

    @property
    def processor(self) -> str:
        """What computes: figures differ in their last digits from one to another."""
        if self.device.startswith("cuda"):
            return str(torch.cuda.get_device_name(self.device))
        if not self.device.startswith("cpu"):
            return self.device
        return f"{platform.machine()} {'with' if has_bfloat16() else 'without'} bfloat16 arithmetic"

    @property
    def pad_id(self) -> int:
        """What fills the short texts of a batch: the tokenizer's padding, if the model knows it."""
        pad: int | None = self.tokenizer.pad_token_id
        return pad if pad is not None and pad < self.vocab_size else 0


def load_meta(model: AnySpec) -> Anatomy:
    """The anatomy of a model from its config alone; reads no weights and needs no memory for them.

    Raises:
        ModelError: unknown model, dense model, or an architecture that cannot be read.
    """
    spec = as_spec(model)
    config = load_config(spec)
    return _anatomy(spec, _build_meta(spec, config), config)


def load_model(
    model: AnySpec, *, check: Check = anything, on_progress: OnProgress = quiet
) -> LoadedModel:
    """Load weights and tokenizer and find the anatomy.

    Args:
        model: a hub id, a folder, or a `ModelSpec`, which also says precision and device.
        check: told what is known before weights are read; what it raises ends the loading.
        on_progress: told how much is fetched, where it comes from the hub.

    Raises:
        BadInputError: it is something else.
        ModelError: unknown model or device, no safetensors, missing or mismatched weights, dense
            model, an architecture that cannot be read.
    """
    spec = pinned(as_spec(model))
    device, config = pick_device(spec.device), load_config(spec)
    stock = _build_meta(spec, config)
    empty = _anatomy(spec, stock, config)  # refuse before reading gigabytes
    stored = stored_in(config)
    dtype = _auto_dtype(stored, empty, device) if spec.dtype == "auto" else _dtype(spec.dtype)
    kept = stored if dtype == "auto" else dtype
    refuse_giant(spec, config, empty, kept)
    check(Outline(spec.model, empty, config, _bytes(empty, kept)))
    require_packages(spec, config)
    folder = checkpoint_folder(spec, on_progress)
    files = checkpoint_files(folder)
    refuse_unscaled(config, files, stock)
    try:
        whole, info = guard(
            spec,
            auto_class(spec.model, config).from_pretrained,
            spec.model,
            reads=WEIGHTS,
            revision=spec.revision,
            dtype=dtype,
            trust_remote_code=spec.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # named below, and refused
        )
    except ModelError:
        refuse_parts_of_blocks(config, files, stock)
        name_misfit(config, stock, empty, folder)
        raise
    refuse_partial(spec, info)
    refuse_left_out(files, stock, info["unexpected_keys"])
    refuse_parts_of_blocks(config, files, stock, whole)
    try:
        whole = whole.to(device).eval()
    except torch.OutOfMemoryError as error:
        raise ModelError(
            f"{spec.model} does not fit on {device}; use `engine=streamed`, or `device=cpu`"
        ) from error
    tokenizer = load_tokenizer(spec)
    anatomy, digest = find_anatomy(whole, config), weights_fingerprint(whole)
    return held_model(spec, whole, config, tokenizer, anatomy, digest, stored, device)


def held_model(
    spec: ModelSpec,
    model: nn.Module,
    config: Any,
    tokenizer: Any,
    anatomy: Anatomy,
    weights_hash: str,
    stored: Any,
    device: torch.device,
    streamed: StreamedModel | None = None,
) -> LoadedModel:
    """What is known of a model that is there; ``stored``: the dtype that its checkpoint has."""
    refuse_foreign_ids(spec, model)
    dtype = next(model.parameters()).dtype if streamed is None else streamed.dtype
    return LoadedModel(
        spec=spec,
        model=model,
        tokenizer=tokenizer,
        anatomy=anatomy,
        config_hash=config_hash(config),
        tokenizer_hash=text_hash(tokenizer.backend_tokenizer.to_str()),
        weights_hash=weights_hash,
        dtype=str(dtype).removeprefix("torch."),
        stored_dtype=str(stored).removeprefix("torch."),
        device=str(device),
        revision=spec.revision,
        streamed=streamed,
    )


def open_model(
    model: AnySpec,
    *,
    engine: EngineName = "auto",
    memory: str | None = None,
    batch_tokens: int | None = None,
    window: int | None = None,
    check: Check = anything,
    on_progress: OnProgress = quiet,
) -> LoadedModel:
    """Load a model as an engine needs it: whole, or with its layers on disk.

    Args:
        model: a hub id, a folder, or a `ModelSpec`.
        engine: ``resident`` (all weights in memory), ``streamed`` (one decoder layer at a time), or
            ``auto``: resident where it fits.
        memory: what the process may take, such as ``4GB``; a promise, checked before weights are
            read. Nine tenths of what is free by default, on the device that computes.
        batch_tokens: tokens of a batch, where they are asked for.
        window: tokens of the longest window; the model's context up to 2,048 by default.
        check: see `load_model`.
        on_progress: see `load_model`.

    Raises:
        ModelError: as `load_model`, or the promise cannot be kept (says what it would take).
        BadInputError: ``memory`` is not a size.
    """
    held = how_held(model, engine=engine, memory=memory)
    return open_held(
        held, batch_tokens=batch_tokens, window=window, check=check, on_progress=on_progress
    )


@dataclass(frozen=True)
class Holding:
    """How a model is going to be held, as its configuration tells: no weight is read for it.

    Attributes:
        spec: the model, at one commit.
        anatomy: of its layers.
        device: that computes.
        dtype: of the computation.
        need: bytes that all weights and one batch take.
        budget: bytes that may be taken.
        streamed: layers stay on disk and are read one at a time.
    """

    spec: ModelSpec
    anatomy: Anatomy
    device: torch.device
    dtype: torch.dtype
    need: int
    budget: int
    streamed: bool


def how_held(model: AnySpec, *, engine: EngineName = "auto", memory: str | None = None) -> Holding:
    """Decide how a model is held, as `open_model` does, before anything of it is loaded.

    Args:
        model: a hub id, a folder, or a `ModelSpec`.
        engine: see `open_model`.
        memory: see `open_model`.

    Raises:
        ModelError: unknown or dense model, or one that cannot be held in this memory.
        BadInputError: ``memory`` is not a size.
    """
    spec = pinned(as_spec(model))
    device = pick_device(spec.device)
    budget = int(0.9 * free_memory(device)) if memory is None else parse_memory(memory)
    config = load_config(spec)
    stored = getattr(config.get_text_config(), "dtype", None)
    dtype = _streamed_dtype(spec, stored, device)
    anatomy = _anatomy(spec, _build_meta(spec, config), config)
    need = resident_need(anatomy, dtype)
    fits = need <= budget or (engine == "resident" and memory is None)
    if engine == "resident" and not fits:
        raise ModelError(
            f"`memory` {memory} is too little to hold this model: it needs {readable(need)}; "
            "use `engine=streamed`"
        )
    return Holding(spec, anatomy, device, dtype, need, budget, engine == "streamed" or not fits)


def open_held(
    held: Holding,
    *,
    batch_tokens: int | None = None,
    window: int | None = None,
    check: Check = anything,
    on_progress: OnProgress = quiet,
) -> LoadedModel:
    """Load a model as was decided; see `open_model`."""
    if not held.streamed:
        return load_model(held.spec, check=check, on_progress=on_progress)
    return load_streamed(
        held.spec, memory=held.budget, batch_tokens=batch_tokens, window=window, check=check,
        on_progress=on_progress,
    )  # fmt: skip


def load_streamed(
    spec: ModelSpec,
    *,
    memory: int | None = None,
    batch_tokens: int | None = None,
    window: int | None = None,
    check: Check = anything,
    on_progress: OnProgress = quiet,
) -> LoadedModel:
    """A model whose decoder layers stay on disk, for the streamed engine.

    Embedding, norms and head are read; the layers are read one at a time when a trace runs them.
    Two environment variables that size torch's caches of kernels are set where they are not
    (`moescope.kernels`). See `open_model`; ``memory`` is in bytes here.

    Raises:
        ModelError: as `load_model`; a quantised checkpoint, a shard that is missing, a tensor of
            another shape, a promise that cannot be kept.
    """
    keep_few_kernels()
    device, spec = pick_device(spec.device), pinned(spec)
    config = load_config(spec)
    refuse_quantised(spec, config)
    empty = _build_meta(spec, config)
    anatomy = _anatomy(spec, empty, config)
    stored = stored_in(config)  # what is built in another dtype changes the configuration
    dtype = _streamed_dtype(spec, stored, device)
    check(Outline(spec.model, anatomy, config, _bytes(anatomy, dtype), streamed=True))
    model = _build_meta(spec, config, dtype).eval()
    folder, block = checkpoint_folder(spec, on_progress), anatomy.layers[0].site.block
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or 2048
    refuse_unscaled(config, checkpoint_files(folder), model)
    streamed = guard(spec, StreamedModel, model, folder, block, dtype, device, reads=WEIGHTS)
    streamed.need = plan_streaming(
        anatomy,
        streamed.outside_bytes(),
        streamed.layer_bytes(),
        dtype,
        int(0.9 * free_memory(device)) if memory is None else memory,
        batch_tokens,
        window=window or min(2048, int(context)),
        sorts=device.type == "cpu" and sorts_experts(model),
    )
    guard(spec, streamed.load_rest, reads=WEIGHTS)
    tokenizer, digest = load_tokenizer(spec), streamed.fingerprint()
    return held_model(spec, model, config, tokenizer, anatomy, digest, stored, device, streamed)


def stored_in(config: Any) -> Any:
    """The dtype of a checkpoint, as its configuration says, or None."""
    return getattr(config.get_text_config(), "dtype", None) or getattr(config, "dtype", None)


def _bytes(anatomy: Anatomy, dtype: Any) -> int:
    """Of all weights in this precision; in float32 where it is not known."""
    return anatomy.total_params * getattr(dtype, "itemsize", 4)


def _streamed_dtype(spec: ModelSpec, stored: Any, device: torch.device) -> torch.dtype:
    if spec.dtype != "auto":
        return _dtype(spec.dtype)
    if not isinstance(stored, torch.dtype):
        return torch.float32
    half = stored in (torch.bfloat16, torch.float16)
    return torch.float32 if half and device.type == "cpu" and not has_bfloat16() else stored


def weights_fingerprint(model: nn.Module) -> str:
    """A sha256 over a thin, fixed selection of every parameter: tells checkpoints apart quickly."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        step = max(1, flat.numel() // 64)
        digest.update(name.encode())
        digest.update(flat[::step][:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _build_meta(spec: ModelSpec, config: Any, dtype: torch.dtype | None = None) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = guard(
            spec,
            auto_class(spec.model, config).from_config,
            config,
            reads=CONFIG,
            trust_remote_code=spec.trust_remote_code,
            **({} if dtype is None else {"dtype": dtype}),
        )
    return model


def _anatomy(spec: ModelSpec, model: nn.Module, config: Any) -> Anatomy:
    found: Anatomy = guard(spec, find_anatomy, model, config, reads=CONFIG)
    return found


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} is unknown; choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _auto_dtype(stored: Any, anatomy: Anatomy, device: torch.device) -> Any:
    """``auto`` for transformers, or float32 where half precision would only be emulated."""
    if device.type != "cpu" or stored not in (torch.bfloat16, torch.float16) or has_bfloat16():
        return "auto"
    return torch.float32 if 5 * anatomy.total_params < machine_memory() else "auto"


def has_bfloat16() -> bool:
    """Does this processor multiply bfloat16 itself? Assumed where there is no way to ask."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    asks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, ask, lambda: True)() for ask in asks)


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one.

    Raises:
        ModelError: it cannot be used here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # meta has no data to give
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise ModelError(
            f"device {name!r} cannot be used here ({first}); try `device=cpu`"
        ) from error
    return device
