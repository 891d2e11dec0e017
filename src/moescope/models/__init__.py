"""Models: loading, the anatomy of their MoE layers, and the capture of what routers do."""

from moescope.models.anatomy import Anatomy, MoELayer
from moescope.models.as_model import AnyModel, as_model, wrap_model
from moescope.models.loading import LoadedModel, ModelSpec, load_meta, load_model, open_model
from moescope.models.probe import find_anatomy

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
