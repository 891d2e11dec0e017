"""What `select` cannot choose by, or from, or confirm."""

import json
from pathlib import Path

from tests.cli.bad import case

SELECT = "select RUN --domain domain0"
PLANNED = "select RUN --plan PLAN"


def _plan_of_another(here: Path) -> None:
    plan = {
        "schema_version": 3, "kind": "plan", "model": "other", "config_sha256": "0" * 64,
        "layers": [0], "num_experts": [8], "entries": [{"expert": "L0E1"}], "created_by": "a test",
    }  # fmt: skip
    (here / "p.json").write_text(json.dumps(plan))


CASES = [
    case("no domain", "select RUN --budget 5%", "--domain is missing", "domain0"),
    case("an unknown domain", "select RUN --domain domian0 --budget 5%", "--domain", "'domian0'",
         "did you mean domain0"),
    case("an unknown domain to compare with", f"{SELECT} --against law --budget 5%", "--against",
         "'law'", "there is: domain0"),
    case("a domain on both sides", f"{SELECT} --against domain0 --budget 5%", "in --domain and in"),
    case("no rule", SELECT, "--per-layer 2, --top-p 0.2 and --budget 5%", "none was given"),
    case("two rules", f"{SELECT} --per-layer 2 --budget 5%", "got --per-layer, --budget"),
    case("a budget for no expert", f"{SELECT} --budget 1%", "of 32 experts is none", "3.1%"),
    case("a budget of all", f"{SELECT} --budget 100%", "--budget 100%"),
    case("a budget of nothing", f"{SELECT} --budget 0%", "--budget 0%"),
    case("a budget without %", f"{SELECT} --budget 0.05", "'0.05' is not of the form 5%"),
    case("a budget of words", f"{SELECT} --budget few", "'few' is not of the form 5%"),
    case("all of a layer", f"{SELECT} --per-layer 8", "--per-layer 8", "give 1 to 7"),
    case("none of a layer", f"{SELECT} --per-layer 0", "--per-layer 0", "give 1 to 7"),
    case("a share of two", f"{SELECT} --top-p 2", "--top-p 2 is no share"),
    case("a share of random numbers", f"{SELECT} --top-p 0.2 --score random", "--score random"),
    case("an unknown score", f"{SELECT} --budget 5% --score importance", "--score", "importance"),
    case("too few documents", f"{SELECT} --budget 20%", "domain0 has 4 documents and needs 10"),
    case("a folder that is no run", "select TEXTS --domain d --budget 5%", "is not a run"),
    case("a name without a suffix", f"{SELECT} --budget 20% -o plan", "call it plan.json"),
    case("a plan that says no domain", PLANNED, "--domain is missing"),
    case("a plan and a rule", f"{PLANNED} --budget 5%", "is tested as it is; --budget has no"),
    case("a plan and a file for it", f"{PLANNED} -o p.json", "-o has no place"),
    case("a plan of another model", "select RUN --plan p.json", "the plan was made for other",
         prepare=_plan_of_another),
    case("a plan that is not there", "select RUN --plan none.json", "none.json"),
    case("a plan on too few documents", f"{PLANNED} --domain domain0",
         "domain0 has 4 documents and needs 5"),
]  # fmt: skip
