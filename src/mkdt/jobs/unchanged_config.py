"""Check that the config of a run stays what it was when the run began.

Snakemake gives a local job its slice of the config from memory. For a job on a cluster it reads the config files again: a file
that was edited meanwhile would give one run two configs. The first Snakemake notes a digest in the environment, which the
Snakemakes that it starts for single jobs inherit.
"""

import os

from mkdt.artifacts import digest
from mkdt.config.sections import Config
from mkdt.errors import UserError

NOTE = "MKDT_CONFIG"


def check_unchanged(config: Config, begins: bool) -> None:
    """Compare the config with the one that the run began with.

    Args:
        config: the checked config.
        begins: whether this is the Snakemake that was started; otherwise it was started for single jobs.

    Raises:
        UserError: a config file changed since the run began.
    """
    now = digest({**config, "tracking": None})
    if begins:
        os.environ[NOTE] = now
    elif os.environ.get(NOTE, now) != now:
        raise UserError("the config changed while this run was going on: give the same command again.")
