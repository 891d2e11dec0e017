"""The tensors of a checkpoint folder, read straight into parameters, or looked at one by one.

`StoredWeights` joins what `stored` knows of files with what transformers makes of several tensors.
It knows parameters, not decoder layers.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from moescope.errors import ModelError
from moescope.models.stored import (
    Stored,
    Target,
    assemble,
    checkpoint_files,
    copy_into,
    pick_stacked,
    places,
    read_header,
    reading,
    stacked_side,
)
from moescope.models.targets import made_together

_Reads = list[Any]
"""Of each source of a parameter: its key, an open file, and the pattern that it matched."""


class StoredWeights:
    """What a checkpoint folder holds.

    Attributes:
        files: the file that holds each tensor.
    """

    def __init__(self, model: Any, folder: Path) -> None:
        self.folder = folder
        self.files = checkpoint_files(folder)
        self._model = model
        self._header_of = functools.cache(read_header)

    def header(self, key: str) -> Stored:
        """Shape and place of a stored tensor.

        Raises:
            ModelError: the file does not hold what the index says.
        """
        path = self.files[key]
        header = self._header_of(path)
        if key not in header:
            raise ModelError(f"{path.name} does not hold {key}, which the index says it does")
        return header[key]

    @contextlib.contextmanager
    def opened(
        self, targets: Iterable[Target], *, scattered: bool = False
    ) -> Iterator[Callable[[Target], _Reads]]:
        """Open the files of these parameters; yields what gives the sources of one of them."""
        paths = {self.files[key] for target in targets for key, _ in target.sources}
        with contextlib.ExitStack() as stack:
            handles = {
                path: stack.enter_context(reading(path, self._header_of(path), scattered=scattered))
                for path in sorted(paths)
            }
            yield lambda target: [(k, handles[self.files[k]], p) for k, p in target.sources]

    def read(self, name: str, target: Target, reads: _Reads, held: torch.Tensor) -> None:
        """Read a parameter into the memory that is there for it.

        Raises:
            ModelError: a file is damaged, or holds another shape.
        """
        try:
            if target.converter is None:
                [(key, handle, _)] = reads[:1]
                copy_into(held, handle.get_tensor(key), name, key)
            elif (dim := stacked_side(target.converter)) is not None:
                assemble(held, target.converter, reads, dim, name)
            else:
                copy_into(held, self._convert(name, target, reads), name, reads[0][0])
        except SafetensorError as error:
            raise ModelError(f"{self.folder}: {name}: {error}") from error

    def elements(
        self, name: str, shape: torch.Size, target: Target, flat: torch.Tensor
    ) -> torch.Tensor:
        """Some elements of a parameter, by their places in the flat one; others are not read."""
        with self.opened([target], scattered=True) as reads_of:
            reads = reads_of(target)
            if target.converter is None:
                return reads[0][1].elements(reads[0][0], flat.tolist())  # type: ignore[no-any-return]
            dim = stacked_side(target.converter)
            if dim is None:
                return self._convert(name, target, reads).reshape(-1)[flat]
            return pick_stacked(flat, shape, places(target.converter, reads, dim), dim)

    def read_ahead(self, targets: Iterable[Target]) -> None:
        """Ask the system to bring the bytes of parameters into its file cache."""
        if not hasattr(os, "posix_fadvise"):
            return
        ranges: dict[Path, list[Stored]] = {}
        for target in targets:
            for key, _ in target.sources:
                ranges.setdefault(self.files[key], []).append(self.header(key))
        for path, parts in ranges.items():
            with path.open("rb") as file:
                for part in parts:
                    wanted = (part.begin, part.length, os.POSIX_FADV_WILLNEED)
                    os.posix_fadvise(file.fileno(), *wanted)

    def _convert(self, name: str, target: Target, reads: _Reads) -> torch.Tensor:
        """What transformers' own conversion makes of these tensors; needs twice their memory."""
        converter = deepcopy(target.converter)
        for key, handle, pattern in reads:
            converter.add_tensor(name, key, pattern, handle.get_tensor(key))
        first = made_together(name, converter)[0]  # pieces are cut by the names of them all
        made = converter.convert(first, model=self._model, config=self._model.config)
        found = made[name]
        return found[0] if isinstance(found, list) else found  # type: ignore[no-any-return]
