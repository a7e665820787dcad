"""Source text of functions of this package that runs without it."""

import json
from pathlib import Path
from typing import Any

from made_results import TEACHER
from without_mkdt import alone

from mkdt.export.standalone import standalone
from mkdt.networks.backbones import build_backbone


def test_the_text_builds_every_network(tmp_path: Path) -> None:
    """The copied source builds each architecture as this package does."""
    specs: list[dict[str, Any]] = [
        {"architecture": "convnet", "depth": 2, "width": 4, "norm": "group"},
        {"architecture": "torchvision_resnet", "name": "resnet18", "kernel": 3, "padding": 2, "max_pool": False},
        *({"architecture": name} for name in ("resnet10", "vgg11", "alexnet", "mobilenet")),
        TEACHER,
    ]
    (tmp_path / "network.py").write_text(standalone("networks.backbones", "build_backbone"))
    count = "[sum(p.numel() for p in build_backbone(spec, 3, 32).parameters()) for spec in specs]"
    printed = alone(tmp_path, f"from network import build_backbone\nspecs = {specs}\nprint({count})")
    assert json.loads(printed) == [sum(p.numel() for p in build_backbone(spec, 3, 32).parameters()) for spec in specs]
