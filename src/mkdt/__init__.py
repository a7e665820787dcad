"""MKDT: distil unlabelled images into tiny synthetic sets for self-supervised pre-training (arXiv 2410.02116)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdt.distill.synthetic_set import SyntheticSet, load_synthetic
    from mkdt.evaluate.pretraining import pretrain
    from mkdt.export.loaders import load_encoder

__all__ = ["SyntheticSet", "load_encoder", "load_synthetic", "pretrain"]

_MODULES = {
    "SyntheticSet": "distill.synthetic_set",
    "load_encoder": "export.loaders",
    "load_synthetic": "distill.synthetic_set",
    "pretrain": "evaluate.pretraining",
}


def __getattr__(name: str) -> Any:
    """Import torch only when it is needed: the Snakefile and the config checks do without."""
    if name in _MODULES:
        return getattr(import_module(f"mkdt.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'mkdt' has no attribute '{name}'")
