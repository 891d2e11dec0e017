"""Recipes that cannot be trained: numbers, sizes, YAML, text and tokenizers."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from tests.cli.bad import Case, case
from tests.support.saved import tiny_tokenizer, write_corpus
from tests.training.conftest import BASE, merged

_TRAIN = "train RECIPE -o r --set "

_SETTINGS = {
    "infinite rate": ("train.learning_rate=.inf", "train.learning_rate: expected a finite"),
    "infinite decay": ("train.weight_decay=.inf", "train.weight_decay"),
    "infinite clip": ("train.gradient_clip=.inf", "train.gradient_clip"),
    "infinite final rate": ("train.final_learning_rate=.inf", "train.final_learning_rate"),
    "infinite weight": ("balance.load_balancing=.inf", "balance.load_balancing"),
    "infinite ramp": (
        "balance.load_balancing={start: 0, end: .inf, over: 0.5}", "balance.load_balancing.end"),
    "infinite spread": ("model.initializer_range=.inf", "model.initializer_range"),
    "infinite base": ("model.rope_theta=.inf", "model.rope_theta"),
    "infinite scale": ("router.initial_scale=.inf", "router.initial_scale"),
    "infinite capacity": ("capacity.train=.inf", "capacity.train"),
    "infinite minutes": ("run.checkpoint_minutes=.inf", "run.checkpoint_minutes"),
    "no number": ("train.warmup=.nan", "train.warmup"),
    "a number of 309 digits": ("capacity.train=1.0e+308", "capacity.train: expected a number"),
    "a beta of 1": ("train.betas=[0.9, 1.0]", "train.betas.1"),
    "a beta below 0": ("train.betas=[-0.1, 0.9]", "train.betas.0"),
    "one beta": ("train.betas=[0.9]", "train.betas"),
    "beta is not a number": ("train.betas=[.nan, 0.9]", "train.betas.0"),
    "a seed below 0": ("seed=-1", "seed: expected 0 or more"),
    "a seed of 71 bits": (f"seed={2**70}", "seed: expected a number of at most 19 digits"),
    "a seed of 5,000 digits": ("seed=" + "9" * 5000, "--set"),
    "a truth value": ("train.steps=yes", "train.steps: expected something else than true"),
    "a text for a number": ("train.steps=many", "train.steps"),
    "a list for a number": ("model.hidden_size=[16]", "model.hidden_size"),
    "a date": ("name=2020-01-01", "name"),
    "a date of no sense": ("name=2020-99-99", "--set"),
    "a section for a number": ("train.steps.x=1", "is 6, not a section"),
    "nested too deeply": ("seed=" + "[" * 5000, "nested too deeply"),
    "an alias": ("seed=*x", "aliases (*name) are not read"),
    "Python in YAML": ("seed=!!python/name:os.system", "--set"),
    "a vocabulary of 10¹²": ("tokenizer.vocab_size=1000000000000", "tokenizer.vocab_size"),
    "a million layers": ("model.num_hidden_layers=1000000", "at most 1000"),
    "giant experts": ("model.intermediate_size=1000000000", "model.intermediate_size"),
    "a thousand wide layers": (
        "model.num_hidden_layers=1000 --set model.num_experts=4096 --set "
        "model.intermediate_size=4000000", "of memory: "),
    "a giant batch": ("train.sequences=10000000 --set model.hidden_size=4096", "of memory: "),
    "a million workers": ("run.workers=1000000", "run.workers"),
    "a long name": ("name=" + "x" * 5000, "name: "),
    "no file of text": ("data.train=nowhere.jsonl", "nowhere.jsonl"),
    "text on no disk": ("data.train=/dev/null", "/dev/null"),
    "a tokenizer in a file": ("tokenizer.path=/dev/null", "no tokenizer.json there"),
}  # fmt: skip

_BOMB = "a0: &a0 [x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)

_FILES = {
    "an empty file": (b"", "expected sections"),
    "a list": (b"[1]", "expected sections"),
    "bytes": (bytes(range(256)), "is not UTF-8 text"),
    "a bomb": (_BOMB.encode(), "aliases (*name) are not read"),
    "a circle": (b"a: &a [*a]", "aliases (*name) are not read"),
    "a nest": (b"a: " + b"[" * 5000, "nested too deeply"),
    "a long file": (b"x: " + b"y" * 200_000, "such a file has at most"),
    "5,000 digits": (b"seed: " + b"9" * 5000, "recipe r.yaml"),
    "a key that is not text": (b"? [a]\n: b", "recipe r.yaml"),
    "a number for a key": (b"1: 2", "r.yaml: name is missing"),
    "half a character": (b'name: "\\ud800"', "r.yaml"),
}


def _file(content: bytes) -> Callable[[Path], None]:
    return lambda here: (here / "r.yaml").write_bytes(content) and None


def _gaps(stored: bytes) -> bytes:
    """A tokenizer with a token far behind the others."""
    tokenizer = json.loads(stored)
    tokenizer["model"]["vocab"]["zz"] = 70_000
    return json.dumps(tokenizer).encode()


def _with_tokenizer(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """A recipe whose tokenizer has one other file."""

    def prepare(here: Path) -> None:
        write_corpus(here / "texts.jsonl", documents_per_domain=4)
        tiny_tokenizer().save_pretrained(here / "tokenizer")
        stored = (here / "tokenizer" / name).read_bytes()
        (here / "tokenizer" / name).write_bytes(change(stored))
        changes: dict[str, Any] = {"data": {"train": "texts.jsonl"}}
        changes["tokenizer"] = {"path": "tokenizer"}
        text = yaml.safe_dump(merged(BASE, changes))
        (here / "r.yaml").write_text(text, encoding="utf-8")

    return prepare


def _log(content: bytes) -> Callable[[Path], None]:
    """What looks like the log of a training."""

    def prepare(here: Path) -> None:
        (here / "t" / "log").mkdir(parents=True)
        (here / "t" / "log" / "steps.parquet").write_bytes(content)

    return prepare


def _settings() -> list[Case]:
    return [case(name, _quoted(more), says) for name, (more, says) in _SETTINGS.items()]


def _quoted(more: str) -> list[str]:
    first, *others = more.split(" --set ")
    words = [*_TRAIN.split(), first]
    for other in others:
        words += ["--set", other]
    return words


CASES = [
    *_settings(),
    *(
        case(f"a recipe: {name}", "train r.yaml -o r", says, prepare=_file(content))
        for name, (content, says) in _FILES.items()
    ),
    case(
        "a tokenizer with gaps",
        "train r.yaml -o r",
        "its ids reach to 70000",
        prepare=_with_tokenizer("tokenizer.json", _gaps),
    ),
    case(
        "too little text",
        "train RECIPE -o r --set data.context=20000 --set model.max_position_embeddings=20000",
        "give at least 40001 tokens",
    ),
    case(
        "a pipe", "train p -o r", "a device or a pipe", prepare=lambda here: os.mkfifo(here / "p")
    ),
    case("a folder", "train . -o r", "is a folder"),
    case("an example that there is not", "train --example nothing", "there is: capacity, "),
    case("a slip in an example", "train --example noisy-topc", "did you mean noisy-topk?"),
    case("a path for an example", "train RECIPE --example -o r", "no example is called"),
    case("no recipe", "train -o r", "RECIPE is missing", "--example"),
    case("a recipe without a folder", "train RECIPE", "out is missing; give --out"),
    case("no steps", "train RECIPE -o r --steps 0", "--steps"),
    case(
        "an example with a wrong setting",
        "train --example switch -o r --set model.top_k=2",
        "set model.top_k to 1",
    ),
    case("three runs of another kind", "compare RUN OTHERRUN RUN", "folders of moescope train"),
    case("a page of two runs", "compare RUN OTHERRUN -o page.html", "--out"),
    case("one training twice", "compare t t", "nothing to be compared", prepare=_log(b"")),
    case("a training and a run", "compare t RUN", "cannot be read", prepare=_log(b"PAR1")),
    case("a device", "train /dev/zero -o r", "a device or a pipe"),
    case("a name with a NUL", ["train", "a\0b", "-o", "r"], "null byte"),
    case(
        "a broken tokenizer",
        "train r.yaml -o r",
        "tokenizer.json",
        prepare=_with_tokenizer("tokenizer.json", lambda _: b"[]"),
    ),
    case(
        "broken settings of a tokenizer",
        "train r.yaml -o r",
        "tokenizer_config.json",
        prepare=_with_tokenizer("tokenizer_config.json", lambda _: b"[]"),
    ),
]
