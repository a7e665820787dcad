"""Architectures of networks: the keys of the config that each takes, and the smallest image it takes."""

from collections.abc import Mapping
from typing import Any, cast

from mkdt.config import extensions
from mkdt.config.sections import Backbone, Network

_BUILT_IN = {
    "convnet": ("depth", "width", "norm"),
    "resnet": ("blocks", "width"),
    **dict.fromkeys(("resnet10", "resnet18", "vgg11", "alexnet", "mobilenet"), ()),
}
_OWN = extensions.declared(extensions.Architecture, _BUILT_IN)
# Arguments of each architecture. A config file that overrides a network may leave keys of another architecture behind.
ARCHITECTURES = _BUILT_IN | {name: own.arguments for name, own in _OWN.items()}
# How often each halves an image. A convnet halves it `depth` times; the others take an image of any size.
POOLS = {"alexnet": 3, "vgg11": 5, **{name: own.halvings for name, own in _OWN.items()}}


def network(spec: Backbone) -> dict[str, Any]:
    """Return a network's entry with the arguments of its architecture only."""
    entry: dict[str, Any] = dict(spec)
    return {key: entry[key] for key in ("architecture", *ARCHITECTURES[spec["architecture"]])}


def has_running_statistics(spec: Mapping[str, Any]) -> bool:
    """Return whether a network has batch norms: running statistics are no weights, and one image alone has none."""
    return spec["architecture"] != "convnet" or spec.get("norm") == "batch"


def halvings(spec: Backbone) -> int:
    """Return how often a network halves an image."""
    return cast(Network, spec)["depth"] if spec["architecture"] == "convnet" else POOLS.get(spec["architecture"], 0)
