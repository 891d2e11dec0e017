"""``python -m moescope``."""

from moescope.cli.main import run

run()
