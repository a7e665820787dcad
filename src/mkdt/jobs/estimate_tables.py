"""Jobs, memory and disk of whole experiments, from the sizes in their configs. No torch here.

``python -m mkdt.jobs.estimate_tables config/experiments/NAME.yaml`` prints docs/estimates.md for the configs that are named. The rules
ask for ``attempt`` times a job's memory, so a job that was given too little gets more when it is tried again.
"""

import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mkdt.config.files import BASE, with_base
from mkdt.config.loading import read
from mkdt.config.plan import Job, jobs
from mkdt.config.resource_needs import Need, memory_mb
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES
from mkdt.errors import UserError


def need_of(config: Config, job: Job) -> Need:
    """Return what a job needs."""
    return STAGES[job.stage].need(config, job.wildcards)


def table(config: Config) -> str:
    """Return jobs and sizes of each stage, as Markdown; the largest job of a stage stands for its memory."""
    lines = [
        "| stage | jobs | mem_mb without a GPU | mem_mb with one | GPU memory, GB | results, GB |",
        "|---|---|---|---|---|---|",
    ]
    stages: dict[str, list[Need]] = {}
    for job in jobs(config):
        stages.setdefault(job.stage, []).append(need_of(config, job))
    for stage, needs in stages.items():
        cpu, gpu = (max(memory_mb(one, gpus * STAGES[stage].gpu) for one in needs) for gpus in (0, 1))
        device = max(one.device for one in needs) / 1e9 if STAGES[stage].gpu else 0
        disk = sum(one.disk for one in needs) / 1e9
        lines.append(f"| {stage} | {len(needs)} | {cpu:,} | {gpu:,} | {device:.1f} | {disk:.2f} |")
    return "\n".join(lines) + "\n"


def total(config: Config) -> str:
    """Return a row of Markdown: jobs, the largest job's memory with a GPU, the most GPU memory, and GB of results."""
    needs = [(STAGES[job.stage], need_of(config, job)) for job in jobs(config)]
    host = max(memory_mb(one, int(stage.gpu)) for stage, one in needs) / 1e3
    device = max(one.device for stage, one in needs if stage.gpu) / 1e9
    disk = sum(one.disk for _, one in needs) / 1e9
    return f"| {config['experiment']} | {len(needs)} | {host:.0f} | {device:.0f} | {disk:.1f} |"


def main(arguments: Sequence[str]) -> int:
    """Print docs/estimates.md: the tables of every config that is named, a `base.yaml` beside it taken first.

    Returns:
        the exit code: 1 after one sentence where a config is not good; then nothing else is printed.
    """
    configs = {}
    for name in arguments:
        if Path(name).name == BASE:
            continue
        try:
            configs[name] = read(with_base(name))
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
    print(
        "# What each experiment needs\n\nMade by `make estimate` from the sizes in the configs (src/mkdt/config/resource_needs.py), "
        "not measured. The largest job's memory, of the machine and of its GPU, and all results:\n"
    )
    print("| experiment | jobs | memory, GB | GPU memory, GB | results, GB |\n|---|---|---|---|---|")
    for config in configs.values():
        print(total(config))
    for name, config in configs.items():
        print(f"\n## {config['experiment']}\n\n`{Path(name)}`\n\n{table(config)}", end="")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end without a word where `head` has seen enough
    sys.exit(main(sys.argv[1:]))
