# MKDT: distil unlabelled images into a tiny synthetic set for self-supervised pre-training.
# The main line, in the order of the paper (arXiv 2410.02116):
#
#   data -> teacher -> targets -> experts -> subset -> distill -> pretrain -> probe -> report
#
# `snakemake --cores 2` makes everything that config/config.yaml asks for; see config/README.md for its keys.


configfile: "config/config.yaml"


include: "workflow/rules/common.smk"  # checks the config, names the paths
include: "workflow/rules/data.smk"  # decode and split each data set once


if TEACHER_ORIGIN == "trained":

    include: "workflow/rules/teacher.smk"  # self-supervised training of the teacher


if TEACHER_ORIGIN == "checkpoint":

    include: "workflow/rules/teacher_import.smk"  # or one that the user brings


if TEACHER_ORIGIN != "file":

    include: "workflow/rules/targets.smk"  # its representation of every training image

else:

    include: "workflow/rules/targets_import.smk"  # or representations that the user brings


include: "workflow/rules/targets_probe.smk"  # what a linear probe makes of them
include: "workflow/rules/experts.smk"  # students regressed onto the targets: the trajectories
include: "workflow/rules/subset.smk"  # real subsets
include: "workflow/rules/distill.smk"  # trajectory matching: the synthetic set
include: "workflow/rules/krr.smk"  # another distillation: kernel ridge regression
include: "workflow/rules/mtt.smk"  # and what fails: matching the trajectories of SSL itself


if made_by("own"):

    include: "workflow/rules/own.smk"  # distillation methods of your own, one file each (CONTRIBUTING.md)


include: "workflow/rules/pretrain.smk"  # fresh students, pre-trained on each set
include: "workflow/rules/probe.smk"  # linear probe on few labels
include: "workflow/rules/report.smk"  # tables, figures and the page
include: "workflow/rules/tracking.smk"  # send to MLflow what has not reached it; only when asked for


# Every artifact that is kept is named: otherwise a lost expert would go unnoticed while the report is there. Experts that
# `mkdt clean` removed are not asked for; what needs them makes them again.
rule all:
    default_target: True
    input:
        DATA,
        TEACHER,
        TARGETS,
        TARGETS_PROBE,
        kept(EXPERTS),
        kept(SSL_EXPERTS if "mtt_ssl" in config["methods"] else []),
        SETS,
        PRETRAINED,
        SCORES,
        REPORT,
    localrule: True
