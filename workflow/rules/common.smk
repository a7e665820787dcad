# The checked config, and what all rules share. src/mkdt/config/stages.py says of each stage which paths its outputs have,
# which slice of the config it is given, and what it needs.
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

LIBRARY = str(Path(workflow.basedir) / "src")
sys.path[:0] = [LIBRARY, str(Path(workflow.basedir) / "workflow")]  # this checkout's, whatever else is installed

import snakemake_internals as internals
from mkdt.errors import UserError, redact

try:  # a file of `mkdt.extensions` may declare what cannot be
    from mkdt.cli.run import lock_note
    from mkdt.config import (
        files,
        loading,
        resource_needs,
        network_sizes,
        plan,
        registry,
        result_folders,
        set_checks,
        sizes,
    )
    from mkdt.config.machine_gpus import machine_gpus
    from mkdt.config.methods import METHODS, has_budget, methods_that
    from mkdt.config.stages import STAGES, files as files_of, targets_path
    from mkdt.config.teacher_origin import teacher_origin
    from mkdt.config.views import has_views
    from mkdt.jobs import unchanged_run
    from mkdt.jobs.code_digest import stage_code
    from mkdt.jobs.parent_run import Tracker
except UserError as error:
    raise WorkflowError(str(error))

# Jobs import the library of this checkout, in whichever environment they run.
os.environ.update(PYTHONPATH=os.pathsep.join([LIBRARY, *filter(None, [os.getenv("PYTHONPATH")])]))
# What was typed, for the report; Snakemake's own calls for single jobs inherit it.
os.environ.setdefault("MKDT_COMMAND", redact(shlex.join(["snakemake", *sys.argv[1:]])))

if internals.is_main_process(workflow) and (note := lock_note()):
    print(note, file=sys.stderr)

GIVEN, REGISTRY = config, result_folders.RESULTS / result_folders.REGISTRY
try:
    files.check_files(workflow.configfiles)
    config = loading.load(GIVEN)
    registry.check_names(config, REGISTRY)
    for name in plan.used_students(config):
        network_sizes.student_size(config, name)  # one of the user's own is built
    if internals.is_main_process(workflow):
        registry.check_experiment(config, REGISTRY)
        set_checks.check_values(config)
        if teacher_origin(config) != "trained":
            from mkdt.teacher.brought import check_brought  # torch takes seconds to import

            check_brought(config)
        for sentence in registry.replaced(config, REGISTRY):
            print(sentence, file=sys.stderr)
        for name, sentences in set_checks.brought_doubts(config).items():
            print(f"{name} looks wrong: {' '.join(sentences)}", file=sys.stderr)
        unchanged_run.begin(config)
    else:
        unchanged_run.check_config(config)
except UserError as error:
    raise WorkflowError(str(error))

JOBS = plan.jobs(config)
SOURCE = STAGES["data"].path(config, "data", {"dataset": config["source"]})
TEACHER = STAGES["teacher"].path(config, "teacher")
REPRESENTATIONS = STAGES["targets"].path(config, "targets")
TARGETS = targets_path(config)  # the representations themselves, or in another space
TEACHER_ORIGIN = teacher_origin(config)
BATCHES = plan.expert_batches(config)
METHOD_FILES = {plan.method_name(m): m.removeprefix("file:") for m in config["methods"] if m.startswith("file:")}

# Software of the jobs; `../` because rules name it relative to their own file.
ENVIRONMENT = "../envs/mkdt.yaml"
# A GPU is asked for where there is one, or where the config insists. A cluster's login node says nothing of its nodes:
# there `auto` asks for one.
ON_A_CLUSTER = internals.runs_on_a_cluster(workflow)
GPU = plan.gpus_per_job(config, cluster=ON_A_CLUSTER)
if GPU and internals.is_main_process(workflow) and not ON_A_CLUSTER:  # a job that waits for a GPU would hold its cores
    internals.limit_gpus(workflow, plan.gpu_jobs(config))
THREADS = config["compute"]["threads"]


def experts_of(stage, method=None):
    """The experts of a stage, of one method where it is given; their metrics are named by the batch, so nobody asks for them."""
    chosen = [job for job in JOBS if job.stage == stage and method in (None, job.names.get("method"))]
    return [path for job in chosen for path in files_of(config, job) if path.endswith(".safetensors")]


def made_by(*stages):
    """The outputs of all jobs of these stages, but for experts that `mkdt clean` removed."""
    experts = [path for stage in plan.EXPERT_STAGES if stage in stages for path in experts_of(stage)]
    kept = [path for path in experts if not (Path(path).parent / result_folders.CLEANED).is_file()]
    others = [job for job in JOBS if job.stage in stages and job.stage not in plan.EXPERT_STAGES]
    return kept + [path for job in others for path in files_of(config, job)]


def outputs(stage, **names):
    """The outputs of a rule by role, as patterns; a name with several values makes a list."""
    return {role: output(stage, role, **names) for role in STAGES[stage].outputs}


def output(stage, role, **names):
    """One output of a rule, as a pattern; a name with several values makes a list."""
    several = {name for name, value in names.items() if isinstance(value, (list, tuple))}
    pattern = STAGES[stage].path(config, role, {name: value for name, value in names.items() if name not in several})
    used = {name: names[name] for name in several if f"{{{name}}}" in pattern}
    return expand(pattern, **used, allow_missing=True) if used else pattern


def resources_of(stage, gpus=1, processes=1):
    """What a job of a stage asks for, more memory and time at each attempt: what it did before a limit is not lost."""
    gpus = GPU * STAGES[stage].gpu * gpus

    def need(wildcards):
        return STAGES[stage].need(config, dict(wildcards.items()))

    return {
        **({"gpu": gpus} if STAGES[stage].gpu else {}),
        "mem_mb": lambda wildcards, attempt: attempt * processes * resource_needs.memory_mb(need(wildcards), gpus),
        # Free space without which a job does not start. No limit, unless `--resources disk_mb=` sets one.
        "disk_mb": lambda wildcards: resource_needs.disk_mb(need(wildcards)),
        "runtime": lambda wildcards, attempt: int(60 * min(resource_needs.LONGEST, attempt * STAGES[stage].hours)),
    }


def params_of(stage):
    """What a rule's script is given: its slice of the config, and the digest of its code, which counts as input."""
    return {
        "settings": lambda wildcards: STAGES[stage].slice(config, dict(wildcards.items())),
        "code": lambda wildcards: stage_code(STAGES[stage], config, dict(wildcards.items())),
    }


def initial_set(wildcards):
    """The subset that distillation starts from; one method's subset may be the same for all distill seeds."""
    return STAGES["subset"].path(config, "set", plan.initial_set(config, wildcards))


def set_inputs(wildcards):
    """What the function of a method looks at, as the table of methods says."""
    method = METHODS[wildcards.method]
    inputs = {"initial": initial_set(wildcards)} if method.distilled else {"data": SOURCE}
    inputs |= {"data": SOURCE, "targets": TARGETS} if method.data else {}
    inputs |= {"experts": experts_of("experts")} if method.experts else {}
    inputs |= {"experts": experts_of("method_experts", wildcards.method)} if method.own_experts else {}
    encodes = method.teacher or (method.stage == "subset" and has_views(config["views"]))
    return inputs | ({"teacher": TEACHER} if encodes else {})


def expert_inputs(wildcards):
    """What the function that trains a method's own experts looks at; the teacher where the method asks for it."""
    inputs = {"data": SOURCE} | ({"targets": TARGETS} if METHODS[wildcards.method].data else {})
    return inputs | ({"teacher": TEACHER} if METHODS[wildcards.method].teacher else {})


def data_files(names):
    """The files of data sets."""
    return [STAGES["data"].path(config, "data", {"dataset": name}) for name in names]


def set_file(names):
    """The file of the training set with these names: one that is brought, or one that is made."""
    return METHOD_FILES.get(names["method"]) or STAGES["subset"].path(config, "set", names)


def training_set(wildcards):
    """What a method trains on: a set file, or all images with their targets, which also give `none` its shapes."""
    if wildcards.method not in METHOD_FILES and not has_budget(wildcards.method):
        return {"data": SOURCE, "targets": TARGETS}
    return {"data": SOURCE, "set": set_file(wildcards)}


def students(wildcards):
    """All pre-trained students of one method, budget and architecture, or the teacher in their place."""
    if wildcards.method == "teacher":
        return TEACHER
    wanted = dict(wildcards.items()).items()
    chosen = [job for job in JOBS if job.stage == "pretrain" and wanted <= dict(job.names).items()]
    return [path for job in chosen for path in files_of(config, job) if not path.endswith(".jsonl")]


wildcard_constraints:
    dataset="|".join(config["datasets"]),  # another experiment's, brought as an input, is no output of a rule here
    method="[^/]+",
    budget="[^/]+",
    student="[^/]+",
    distill_seed=r"\d+",


TRACKER = Tracker(config, result_folders.RESULTS)
config["tracking"]["uri"] = None  # it may hold a password, and Snakemake writes the config into each job's script


onstart:
    try:
        registry.register(config, REGISTRY, GIVEN)
    except OSError as error:
        raise WorkflowError(f"{REGISTRY} cannot be written ({error}): change its rights, or free space.")
    TRACKER.start()
    internals.lift_default_rate_limit(workflow)


onsuccess:
    TRACKER.end(True)
    for folder in {Path(path).parent for stage in plan.EXPERT_STAGES for path in experts_of(stage)}:
        if all(
            Path(path).is_file()
            for stage in plan.EXPERT_STAGES
            for path in experts_of(stage)
            if Path(path).parent == folder
        ):
            (folder / result_folders.CLEANED).unlink(missing_ok=True)  # there again after `mkdt clean`
    if made_by("report") and Path(made_by("report")[0]).is_file():
        print(f"Tables and figures: {Path(made_by('report')[0]).parent}/", file=sys.stderr)


onerror:
    TRACKER.end(False)
