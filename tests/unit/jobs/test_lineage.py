"""Where an artifact comes from: what its path says."""

from pathlib import Path

import pytest

from mkdt.jobs.lineage import place_of


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("cifar/data", {"dataset": "cifar"}),
        ("cifar/bt/targets", {"source": "cifar", "teacher": "bt"}),
        ("cifar/bt/net/experts/012", {"source": "cifar", "targets": "bt", "expert_student": "net", "expert": "012"}),
        ("e/experts/mtt_ssl/003", {"experiment": "e", "method": "mtt_ssl", "expert": "003"}),
        ("e/sets/random/1pct/3", {"experiment": "e", "method": "random", "budget": "1pct", "distill_seed": "3"}),
        ("e/report/summary", None),
    ],
)
def test_a_path_says_what_a_file_is(tmp_path: Path, path: str, names: dict[str, str] | None) -> None:
    """Paths are those of docs/artifacts.md; others have no place."""
    (tmp_path / ".experiments").mkdir()
    place = place_of(tmp_path / f"{path}.safetensors")
    assert (place and place.names) == names
