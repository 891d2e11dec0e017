"""Files of settings and plans that hold something else, or far too much of it."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.bad import case

NINES = "9" * 5000
BOMB = "\n".join(
    ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)


def _file(text: str, name: str = "c.yaml") -> Callable[[Path], None]:
    def write(here: Path) -> None:
        (here / name).write_text(text, encoding="utf-8")

    return write


def _config(name: str, text: str, *says: str):  # type: ignore[no-untyped-def]
    return [
        case(name, f"{verb} MOE TEXTS -o r --config c.yaml", *says, prepare=_file(text))
        for verb in ("trace", "analyze")
    ] + [
        case(name, "ablate MOE --corpus TEXTS -o r --each --config c.yaml", *says,
             prepare=_file(text)),
    ]  # fmt: skip


def _plan(name: str, text: str, *says: str):  # type: ignore[no-untyped-def]
    here = _file(text, "p.json")
    return [
        case(name, "steer MOE --prompt plan --plan p.json --as mask", *says, prepare=here),
        case(name, "ablate MOE --corpus TEXTS -o r --plan p.json", *says, prepare=here),
    ]


def _experts(**changes: object) -> str:
    shape = {"name": "moe", "config_sha256": "0" * 64, "layers": [0, 1], "num_experts": [8, 8]}
    plan = {"schema_version": 1, "model": shape, "created_by": "a test", "experts":
            [{"expert": "L1E3", "reason": "", "score": None}]}  # fmt: skip
    return json.dumps({**plan, **changes})


def _set(setting: object, **changes: object) -> str:
    return _experts(schema_version=2, experts=[{"expert": "L1E3", "setting": setting}], **changes)


def _of_steer(name: str, text: str, *says: str):  # type: ignore[no-untyped-def]
    return case(name, "steer MOE --prompt plan --plan p.json", *says, prepare=_file(text, "p.json"))


CASES = [
    *_config("a list", "[1, 2]", "c.yaml"),
    *_config("a word", "keep", "c.yaml", "expected settings"),
    *_config("no YAML", "keep: [", "c.yaml"),
    *_config("aliases that stand for gigabytes", BOMB, "alias"),
    *_config("a settings that holds itself", "seed: &a [*a]", "alias"),
    *_config("a thousand brackets", "seed: " + "[" * 3000 + "]" * 3000, "deep"),
    *_config("a number of 5000 digits", f"seed: {NINES}", "c.yaml"),
    *_config("an unknown setting", "sede: 3", "did you mean seed?"),
    *_config("a setting of a megabyte", f"dtype: {'x' * 100_000}", "dtype"),
    *_config("a large file", "dtype: " + "x" * 1_000_000, "bytes"),
    *_config("a seed below zero", "seed: -1", "seed", "-1"),
    *_config("a seed of 70 bits", f"seed: {2**70}", "seed"),
    *_config("a seed of a half", "seed: 0.5", "seed", "0.5"),
    *_config("a seed without end", "seed: .inf", "seed"),
    *_config("a list for a seed", "seed: [1]", "seed", "[1]"),
    *_config("no number", "test_share: .nan", "test_share", "nan"),
    *_config("a list for a word", "text_field: [text]", "text_field"),
    *_config("a date that is none", "seed: 2020-13-45", "c.yaml"),
    *_config("half of a pair of characters", 'domain: "\\ud800"', "c.yaml"),
    *_config("a null character in a name", 'device: "\\0"', "c.yaml"),
    *_config("a number for a name", "seed: {}", "seed"),
    *_config("a key that is a list", "[1, 2]: 3", "c.yaml"),
    *_config("a tag that would run code", "seed: !!python/object/apply:os.getcwd []", "c.yaml"),
    case("null in a name", "trace MOE -o r --config c.yaml", "c.yaml",
         prepare=_file('corpus: "a\\0b"')),
    *_plan("no JSON", "{", "p.json"),
    *_plan("a list", "[]", "p.json"),
    *_plan("a thousand brackets", "[" * 100_000, "deep"),
    *_plan("a number of 5000 digits", f'{{"schema_version": {NINES}}}', "digits"),
    *_plan("another version", _experts(schema_version=4), "version"),
    *_plan("another kind", _experts(kind="a quilt"), "kind"),
    *_plan("an unknown key", _experts(colour="red"), "colour"),
    *_plan("a plan of an older version", '{"kind": "steering plan", "version": 1}', "older"),
    *_plan("no experts", _experts(experts=[]), "p.json"),
    *_plan("an expert twice", _experts(experts=[{"expert": "L1E3"}] * 2), "L1E3"),
    *_plan("an expert that is a number", _experts(experts=[{"expert": 3}]), "expert"),
    *_plan("an expert of no form", _experts(experts=[{"expert": "3"}]), "L5E9"),
    *_plan("an expert of 5000 digits", _experts(experts=[{"expert": f"L1E{NINES}"}]), "L5E9"),
    *_plan("an expert past its model", _experts(experts=[{"expert": "L1E8"}]), "L1E8"),
    *_plan("a layer past its model", _experts(experts=[{"expert": "L7E0"}]), "L7E0"),
    *_plan("a score that is a word", _experts(experts=[{"expert": "L1E3", "score": "a"}]), "score"),
    *_plan("a score without end",
           _experts(experts=[{"expert": "L1E3", "score": float("inf")}]), "score"),
    *_plan("no model", _experts(model=None), "model"),
    *_plan("a model without layers", _experts(model={"name": "moe"}), "p.json"),
    *_plan("another model", _experts(), "moe"),
    _of_steer("settings of another model", _set("+2"), "not for"),
    _of_steer("a setting of no form", _set("2"), "L1E3=2"),
    _of_steer("a setting that is a number", _set(3), "setting"),
    _of_steer("a setting of many digits", _set(f"+{NINES}"), "too large"),
    case("a value that is none", "steer MOE --prompt plan --plan PLAN --as banana", "--as banana"),
    case("a value in place of another", "steer MOE --prompt plan --plan STEERING --as 2", "--as 2"),
]  # fmt: skip
