"""Words that are no command: verbs, flags and arguments that do not exist or are missing."""

from tests.cli.bad import case

CASES = [
    case("unknown flag", "analyze MOE TEXTS --colour red", "--colour"),
    case("no output", "trace MOE TEXTS", "out is missing"),
    case("one text", 'paths MOE "the plan"', "TEXT"),
]
