# MKDT: distil unlabelled images into a tiny synthetic set for self-supervised pre-training.
# The main line, in the order of the paper (arXiv 2410.02116):
#
#   data -> teacher -> targets -> experts -> subset -> distill -> pretrain -> select -> probe -> report
#
# `snakemake --cores 2` makes everything that config/config.yaml asks for; config/README.md explains its keys. Where the
# artifacts of a stage lie, what it depends on and what it needs: src/mkdt/config/stages.py.

from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.10.0")

if not Path("config/config.yaml").is_file():  # the defaults of all keys; results lie beside
    raise WorkflowError(
        f"the working directory {Path.cwd()} has no config/config.yaml: run this in the project's folder "
        f"{workflow.basedir}, or with --directory {workflow.basedir}."
    )


# The image that apptainer.def makes; `--software-deployment-method apptainer` runs the jobs in it (docs/cluster.md).
container: "mkdt.sif"


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"  # check the config; what all rules share
include: "workflow/rules/data.smk"  # decode and split each data set once
include: "workflow/rules/teacher.smk"  # the teacher, and its representation of every training image: the targets
include: "workflow/rules/sets.smk"  # real subsets, and the synthetic sets distilled from them
include: "workflow/rules/experts.smk"  # students regressed onto the targets: the trajectories that are matched
include: "workflow/rules/evaluate.smk"  # fresh students pre-trained on each set, one choice on validation, the test
include: "workflow/rules/report.smk"  # tables, figures and the page


# Every artifact that is kept is named: otherwise a lost expert would go unnoticed while the report is there. Experts that
# `mkdt clean` removed are not asked for; what needs them makes them again.
rule all:
    default_target: True
    input:
        made_by(*STAGES),
    localrule: True
