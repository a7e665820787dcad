"""Names below ``results/`` that belong to no single stage. The paths of a stage's outputs are in ``stages``."""

from pathlib import Path

RESULTS = Path("results")  # everything produced, relative to the working directory
LOGS, BENCHMARKS = "logs", "benchmarks"  # of all jobs
RESUME = ".resume"  # resume points, and second names of finished outputs
REGISTRY = ".experiments"  # for each experiment its config as it ran last, and what its shared folders stand for
LISTINGS = ".folders"  # remembered listings of large image folders
KEPT = "kept.json"  # in a resume folder: digests of the finished outputs that it keeps
CLEANED = ".cleaned"  # in a folder of experts that `mkdt clean` emptied: experts are made again only when needed
RESERVED = (LOGS, BENCHMARKS, "mlartifacts")  # names that no data set and no experiment can have
