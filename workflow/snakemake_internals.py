"""What the rules use of Snakemake that is not its public interface, each with a fallback.

Written for Snakemake 9.10 to 9.27; tests/workflow/test_internals.py says when a new release no longer has it.
"""

from typing import Any


def runs_on_a_cluster(workflow: Any) -> bool:
    """Return whether jobs run elsewhere: only then Snakemake is given ``--jobs``. Fallback: they run here."""
    settings = getattr(workflow, "resource_settings", None)
    return getattr(settings, "nodes", None) is not None


def declared_gpus(workflow: Any) -> int | None:
    """Return the limit of ``--resources gpu=N`` or ``limit_gpus``; None where there is none. Fallback: no limit.

    Snakemake lowers a larger request without a word.
    """
    limit = getattr(workflow, "global_resources", {}).get("gpu")
    value = getattr(limit, "value", limit)
    return value if isinstance(value, int) else None


def limit_gpus(workflow: Any, number: int) -> None:
    """Let jobs that run at the same time ask for so many GPUs, unless ``--resources gpu=N`` says it. Fallback: no limit."""
    if declared_gpus(workflow) is None and hasattr(workflow, "register_resource"):
        workflow.register_resource("gpu", number)


def is_main_process(workflow: Any) -> bool:
    """Return whether this is the Snakemake that was started, not its call for a single job. Fallback: it is."""
    return bool(getattr(workflow, "is_main_process", True))


def lift_default_rate_limit(workflow: Any) -> None:
    """Drop Snakemake's default limit of 100 jobs a second; a limit that was asked for stays. Fallback: it stays.

    With a limit, Snakemake looks at all jobs that are ready once a timespan for every job that has finished: after some
    hundred jobs, a core does nothing else.
    """
    limiter = getattr(getattr(workflow, "scheduler", None), "job_rate_limiter", None)
    if (getattr(limiter, "max_jobs", None), getattr(limiter, "timespan", None)) == (100, 1):
        workflow.scheduler.job_rate_limiter = None
