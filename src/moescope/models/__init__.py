"""Models: loading, the anatomy of their MoE layers, and the capture of what routers do.

Names are resolved when first used: who only says which model needs no torch.
"""

from typing import TYPE_CHECKING

from moescope.lazy import lazily
from moescope.models.spec import ModelSpec

if TYPE_CHECKING:
    from moescope.models.accept import AnyModel, as_model, wrap_model
    from moescope.models.anatomy import Anatomy, MoELayer
    from moescope.models.loading import LoadedModel, load_meta, load_model, open_model
    from moescope.models.probe import find_anatomy

_WHERE = {
    "Anatomy": "moescope.models.anatomy",
    "AnyModel": "moescope.models.accept",
    "LoadedModel": "moescope.models.loading",
    "MoELayer": "moescope.models.anatomy",
    "as_model": "moescope.models.accept",
    "find_anatomy": "moescope.models.probe",
    "load_meta": "moescope.models.loading",
    "load_model": "moescope.models.loading",
    "open_model": "moescope.models.loading",
    "wrap_model": "moescope.models.accept",
}

__all__ = [
    "Anatomy",
    "AnyModel",
    "LoadedModel",
    "MoELayer",
    "ModelSpec",
    "as_model",
    "find_anatomy",
    "load_meta",
    "load_model",
    "open_model",
    "wrap_model",
]

__getattr__ = lazily(__name__, _WHERE)
