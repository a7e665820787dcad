"""Tables of whole experiments, and what a config that cannot be used says."""

from pathlib import Path

import pytest
from configs import EXPERIMENTS, ROOT

from mkdt.config.files import with_base
from mkdt.config.loading import read
from mkdt.config.plan import jobs
from mkdt.config.resource_needs import disk_mb, memory_mb
from mkdt.jobs import estimate_tables

CONFIGS = [ROOT / "config" / "config.yaml", *EXPERIMENTS]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_has_a_table(file: Path) -> None:
    """Each experiment's jobs can be counted, with memory and disk for each."""
    config = read(with_base(file))
    for job in jobs(config):
        need = estimate_tables.need_of(config, job)
        assert all(memory_mb(need, gpus) >= 3000 for gpus in (0, 1))
        assert disk_mb(need) >= 5
    assert estimate_tables.table(config).count("\n") >= 9
    assert estimate_tables.total(config).count("|") == 6


@pytest.mark.parametrize("text", ["budgets: [0]\n", "budgets: [1\n", None])
def test_a_bad_config_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None) -> None:
    """Before any table: the file is named, exit code 1, no traceback."""
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    assert estimate_tables.main([str(CONFIGS[0]), str(file)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"{file}: ")
    assert said.err.count("\n") == 1
    assert estimate_tables.main([str(CONFIGS[0])]) == 0
