"""MKDT: distil unlabelled images into tiny synthetic sets for self-supervised pre-training (arXiv 2410.02116)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdt.pretraining import pretrain
    from mkdt.synthetic import SyntheticSet, load_synthetic

__all__ = ["SyntheticSet", "load_synthetic", "pretrain"]


def __getattr__(name: str) -> Any:
    """Import torch only when it is needed: the Snakefile and the config checks do without."""
    if name == "pretrain":
        from mkdt import pretraining

        return pretraining.pretrain
    if name in __all__:
        from mkdt import synthetic

        return getattr(synthetic, name)
    raise AttributeError(f"module 'mkdt' has no attribute '{name}'")
