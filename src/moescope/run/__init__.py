"""The folder of a run: written, joined and read; knows no model and no torch."""
