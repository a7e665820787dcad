"""Check that config and code of a run stay what they were when the run began.

Snakemake gives a local job its slice of the config and the digest of its code from memory. For a job on a cluster, another
Snakemake reads the config and the code again: files that were edited meanwhile would give one run two versions. The Snakemake
that was started notes digests in the environment, which those that it starts for single jobs inherit.
"""

import hashlib
import json
import os
from collections.abc import Mapping

from mkdt.config.plan import jobs
from mkdt.config.sections import Config
from mkdt.config.stages import STAGES
from mkdt.errors import UserError
from mkdt.jobs.code_digest import stage_code

CONFIG, CODE = "MKDT_CONFIG", "MKDT_CODE"  # variables of the environment


def begin(config: Config) -> None:
    """Note the digest of the config, and of the code of each kind of job."""
    os.environ[CONFIG] = _digest(config)
    codes: dict[str, str] = {}
    for job in jobs(config):
        names = job.wildcards
        kind = _kind(config, job.stage, names)
        codes[kind] = codes.get(kind) or stage_code(STAGES[job.stage], config, names)
    os.environ[CODE] = json.dumps(codes)


def check_config(config: Config) -> None:
    """Compare the config with the one that the run began with.

    Raises:
        UserError: a config file changed since.
    """
    if os.environ.get(CONFIG, _digest(config)) != _digest(config):
        raise UserError("the config changed while this run was going on: give the same command again.")


def begun_code(config: Config, stage: str, names: Mapping[str, str], given: str) -> str:
    """Return the digest of a job's code when the run began; ``given`` where nothing was noted."""
    noted: dict[str, str] = json.loads(os.environ.get(CODE, "{}"))
    return noted.get(_kind(config, stage, names), given)


def _digest(config: Config) -> str:
    return hashlib.sha256(json.dumps({**config, "tracking": None}, sort_keys=True).encode()).hexdigest()


def _kind(config: Config, stage: str, names: Mapping[str, str]) -> str:
    """What decides the code of a job: its stage, and the modules that the config names."""
    return " ".join([stage, *STAGES[stage].modules(config, dict(names))])
