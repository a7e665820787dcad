"""MKDT: distil unlabelled images into tiny synthetic sets for self-supervised pre-training (arXiv 2410.02116)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdt.distill.from_images import distill_images
    from mkdt.distill.synthetic_set import SyntheticSet, load_synthetic
    from mkdt.evaluate.encoder_probe import probe
    from mkdt.evaluate.pretraining import pretrain
    from mkdt.export.loaders import load_encoder

__all__ = ["SyntheticSet", "distill_images", "load_encoder", "load_synthetic", "pretrain", "probe"]

_MODULES = {
    "SyntheticSet": "distill.synthetic_set",
    "distill_images": "distill.from_images",
    "load_encoder": "export.loaders",
    "load_synthetic": "distill.synthetic_set",
    "pretrain": "evaluate.pretraining",
    "probe": "evaluate.encoder_probe",
}


def __getattr__(name: str) -> Any:
    """Import torch only when it is needed: the Snakefile and the config checks do without."""
    if name in _MODULES:
        return getattr(import_module(f"mkdt.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'mkdt' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return the public names, those too that are imported when they are needed."""
    return sorted({*globals(), *__all__})
