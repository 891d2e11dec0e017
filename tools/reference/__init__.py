"""The pages of docs/reference, one module for each kind; `tools/build_reference.py` writes them."""
