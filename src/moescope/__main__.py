"""``python -m moescope``."""

from moescope.cli.entry import run

run()
