"""A model's small files: what is refused before anything is built, and which key is named."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moescope.errors import ModelError, WriteError
from moescope.models import LoadedModel, ModelSpec, load_model
from moescope.models.config_files import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    check_config,
    fault_in,
)
from moescope.models.loading import load_streamed
from moescope.models.probe import find_anatomy
from moescope.models.source import guard
from moescope.models.spec import local_folder


def config(folder: Path, **settings: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(settings), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"time_step_limit": [0.0, float("inf")]},  # Mamba's: no upper limit
        {"pad_token_id": -1, "sliding_window": -1, "vision_feature_layer": -2},
        {"num_shared_experts": 0, "num_local_experts": 0, "first_k_dense_replace": 0},
        {"max_position_embeddings": 10_485_760, "rope_theta": 1e9},
        {"num_hidden_layers": 61, "num_experts": 512, "hidden_size": 18_432, "vocab_size": 262_144},
        {"dtype": "bfloat16", "torch_dtype": None, "quantization_config": {"group_size": -1}},
        {"text_config": {"hidden_size": 64, "dtype": "torch.float16"}, "warmup_steps": "auto"},
    ],
    ids=lambda s: next(iter(s)),
)
def test_what_real_models_say_is_let_through(settings: dict[str, object], tmp_path: Path) -> None:
    check_config(config(tmp_path, **settings), "m")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"text_config": {"num_hidden_layers": 10**6}},
            r"text_config.num_hidden_layers is 1000000",
        ),
        ({"layers": [{"hidden_size": 0}]}, "layers.hidden_size is 0"),
        ({"encoder_layers": 5000}, "from 0 to 1,000"),
        ({"n_experts": 10**5}, "n_experts is 100000"),
        ({"a": 2**80}, "a is a number of more than 18 digits"),
        ({"rope_scaling": {"factor": "two"}}, 'rope_scaling.factor is "two"'),
        ({"eps": float("nan")}, "eps is NaN"),
    ],
    ids=str,
)
def test_numbers_are_refused_wherever_they_stand(
    settings: dict[str, object], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=f"^m/config.json: .*{words}"):
        check_config(config(tmp_path, **settings), "m")


def test_a_nest_is_refused_at_a_depth_that_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": ' + "[" * 200 + "]" * 200 + "}", encoding="utf-8")
    with pytest.raises(ModelError, match="more than 32 deep"):
        check_config(path, "m")


class TestWhichKey:
    def test_it_is_named_by_the_words_of_the_error(self, tmp_path: Path) -> None:
        config(tmp_path, hidden_act="swash", head_width=3)
        said = fault_in(str(tmp_path), CONFIG, ValueError("head_width must be even"))
        assert said.endswith("json: head_width is 3, which cannot be used: head_width must be even")

    def test_by_the_value_that_is_quoted(self, tmp_path: Path) -> None:
        config(tmp_path, hidden_act="swash", width=3)
        said = fault_in(str(tmp_path), CONFIG, KeyError("swash"))
        assert said.endswith("""hidden_act is "swash", which cannot be used: there is no 'swash'""")

    def test_not_by_the_line_of_code_that_failed_nor_by_a_word_of_prose(
        self, tmp_path: Path
    ) -> None:
        config(tmp_path, num_heads=4, width=3)
        num_heads = 4
        with pytest.raises(RuntimeError) as caught:
            raise RuntimeError(*["the width of a bus is lost"][:num_heads])
        said = fault_in(str(tmp_path), CONFIG, caught.value)
        assert said == f"{tmp_path}/config.json cannot be used: the width of a bus is lost"

    def test_else_what_was_read_and_the_reason(self, tmp_path: Path) -> None:
        config(tmp_path, width=3)
        said = fault_in(str(tmp_path), CONFIG, TypeError("unhashable"))
        assert said == f"{tmp_path}/config.json cannot be used: unhashable (TypeError)"
        for error in (AssertionError(), RuntimeError()):
            said = fault_in(str(tmp_path), WEIGHTS, error)
            reason = type(error).__name__
            assert said == f"{tmp_path}: config.json or the weights cannot be used: {reason}"

    def test_a_vocabulary_may_hold_any_character(self, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text(json.dumps({"vocab": {"\0": 0, "\ud800": 1}}))
        said = fault_in(str(tmp_path), TOKENIZER, ValueError("no merges"))
        assert said == f"{tmp_path}/tokenizer.json cannot be used: no merges"


class TestGuard:
    def test_a_full_disk_is_no_fault_of_the_model(self) -> None:
        def fetch() -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(WriteError, match="cannot be fetched: No space left"):
            guard(ModelSpec("owner/name"), fetch)

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 2048 bytes"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
            RuntimeError("CUDA error: out of memory"),
            OSError(errno.ENOMEM, "Cannot allocate memory"),
        ],
        ids=repr,
    )
    def test_a_lack_of_memory_is_no_fault_of_the_model(
        self, error: Exception, tmp_path: Path
    ) -> None:
        config(tmp_path, hidden_size=2048)

        def fail(wraps: bool) -> None:
            hidden_size = 2048
            try:
                raise [error, hidden_size][0]  # type: ignore[misc]
            except Exception as caught:
                if wraps:
                    raise OSError("Unable to load weights") from caught
                raise

        with pytest.raises(type(error)) as raised:
            guard(ModelSpec(str(tmp_path)), fail, False, reads=CONFIG)
        assert raised.value is error
        with pytest.raises(OSError, match="Unable to load weights"):
            guard(ModelSpec(str(tmp_path)), fail, True, reads=CONFIG)

    def test_nor_is_it_a_fault_of_its_router(
        self, tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def lacks(*_: object) -> None:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

        router = tiny_loaded.model.get_submodule(tiny_loaded.anatomy.layers[0].site.router)
        monkeypatch.setattr(type(router), "forward", lacks)
        with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
            guard(tiny_loaded.spec, find_anatomy, tiny_loaded.model, tiny_loaded.model.config)

    def test_what_is_called_after_memory_is_not_taken_for_it(self, tmp_path: Path) -> None:
        def fetch() -> None:
            raise FileNotFoundError(errno.ENOENT, "No such file", "out of memory.json")

        with pytest.raises(ModelError, match="cannot be used"):
            guard(ModelSpec(str(tmp_path)), fetch)

    def test_a_panic_of_a_library_is_one_line_and_an_interruption_stays_one(self) -> None:
        class PanicException(BaseException):
            pass

        def fail(error: BaseException) -> None:
            raise error

        with pytest.raises(ModelError, match="index out of bounds"):
            guard(ModelSpec("owner/name"), fail, PanicException("index out of bounds"))
        with pytest.raises(KeyboardInterrupt):
            guard(ModelSpec("owner/name"), fail, KeyboardInterrupt())


def test_a_link_to_nothing_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "m").symlink_to(tmp_path / "gone")
    with pytest.raises(ModelError, match="is not a folder"):
        local_folder(str(tmp_path / "m"))
    assert local_folder("owner/name") is None
    assert local_folder(str(tmp_path)) == tmp_path


def test_where_there_is_an_index_beside_the_weights_both_engines_read_the_weights(
    tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "m"))
    stored = load_file(folder / "model.safetensors")
    other = {name: torch.zeros_like(tensor) for name, tensor in stored.items()}
    save_file(other, folder / "old.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(other, "old.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    spec = ModelSpec(str(folder))
    hashes = {load(spec).weights_hash for load in (load_model, load_streamed)}
    assert hashes == {load_model(ModelSpec(str(tiny_folder))).weights_hash}


def test_more_weights_than_the_machine_has_memory_are_not_read(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moescope.models.checks.machine_memory", lambda: 100_000)
    with pytest.raises(ModelError, match=r"parameters, .* of memory; use `engine=streamed`"):
        load_model(ModelSpec(str(tiny_folder)))
