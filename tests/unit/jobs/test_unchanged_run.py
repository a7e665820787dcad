"""Config and code of a run, compared with what was noted when it began."""

import os

import pytest
from configs import with_sections

from mkdt.config.stages import STAGES
from mkdt.errors import UserError
from mkdt.jobs import unchanged_run
from mkdt.jobs.code_digest import stage_code

MKDT = {"method": "mkdt", "budget": "1pct", "distill_seed": "0"}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No note of another run, and none left behind."""
    for name in (unchanged_run.CONFIG, unchanged_run.CODE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_a_config_that_changed_is_refused_and_where_runs_are_sent_does_not_count() -> None:
    """As in a job's Snakemake on a cluster, which reads the files again."""
    config = with_sections()
    unchanged_run.check_config(config)  # nothing was noted: this is no job of a run
    unchanged_run.begin(config)
    unchanged_run.check_config(with_sections(tracking={"enabled": False}))
    with pytest.raises(UserError, match="config changed"):
        unchanged_run.check_config(with_sections(seed=1))


def test_the_code_of_a_job_is_that_of_the_beginning() -> None:
    """Whatever another Snakemake computes for the job later; each stage and method has its own."""
    config = with_sections(methods=["mkdt", "krr_st"])
    assert unchanged_run.begun_code(config, "distill", MKDT, "given") == "given"
    unchanged_run.begin(config)
    for stage, names in (("distill", MKDT), ("distill", MKDT | {"method": "krr_st"}), ("teacher", {})):
        assert unchanged_run.begun_code(config, stage, names, "given") == stage_code(STAGES[stage], config, names)
    assert len(os.environ[unchanged_run.CODE]) < 10_000
