# The checked config, the paths of all artifacts, and what the rules share.
import os
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

LIBRARY = str(Path(workflow.basedir) / "src")
sys.path.insert(0, LIBRARY)  # this checkout's library, whatever else is installed

from mkdt.errors import UserError, redact

try:  # a file of `mkdt.extensions` may declare what cannot be
    import mkdt.config.loading as cfg
    from mkdt.jobs import lineage
    from mkdt.jobs import estimates as resources
    from mkdt.jobs.tracker import Tracker
    from mkdt.jobs.code_digest import code_digest
    from mkdt.config.extensions import own_modules
    from mkdt.config.methods import METHODS, made_by
except UserError as error:
    raise WorkflowError(str(error))

# Jobs import the library of this checkout, in whichever environment they run.
os.environ.update(PYTHONPATH=os.pathsep.join([LIBRARY, *filter(None, [os.getenv("PYTHONPATH")])]))
# What was typed, for the report; Snakemake's own calls for single jobs inherit it.
os.environ.setdefault("MKDT_COMMAND", redact(shlex.join(["snakemake", *sys.argv[1:]])))

REGISTRY = cfg.RESULTS / lineage.REGISTRY
GIVEN = config
try:
    cfg.check_files(workflow.configfiles)
    config = cfg.load(GIVEN)
    cfg.check_names(config, REGISTRY)
    for student in cfg.used_students(config):
        resources.student_size(config, student)  # one of the user's own is built
except UserError as error:
    raise WorkflowError(str(error))

# Paths say source, teacher, student or experiment: what several experiments need is made once.
EXPERIMENT = f"results/{config['experiment']}"
SOURCE = f"results/{config['source']}/data.safetensors"
TEACHER_FOLDER = f"results/{config['source']}/{config['teacher']['name']}"
EXPERT_FOLDER = f"{TEACHER_FOLDER}/{config['student']}/experts"
TRAINING_SET = f"{EXPERIMENT}/sets/{{method}}/{{budget}}/{{distill_seed}}.safetensors"
STUDENT = f"{EXPERIMENT}/pretrain/{{student}}/{{method}}/{{budget}}/{{distill_seed}}/{{seed}}.safetensors"
SCORE = f"{EXPERIMENT}/probe/{{student}}/{{method}}/{{budget}}.csv"

METHOD_FILES = {cfg.method_name(m): m.removeprefix("file:") for m in config["methods"] if m.startswith("file:")}
SEEDS = config["pretrain"]["seeds"]
BATCHES = [
    range(first, min(first + config["experts"]["per_job"], config["experts"]["count"]))
    for first in range(0, config["experts"]["count"], config["experts"]["per_job"])
]
VARIANTS = [
    {"method": cfg.method_name(method), "budget": budget, "distill_seed": seed}
    for method in config["methods"]
    for budget, seed in cfg.variants(config, method)
]

DATA = [f"results/{name}/data.safetensors" for name in cfg.used_datasets(config)]
# A checkpoint has no curve of its training; where targets are brought there is no teacher.
TEACHER_ORIGIN = cfg.teacher_origin(config)
TEACHER = [f"{TEACHER_FOLDER}/teacher.safetensors", f"{TEACHER_FOLDER}/teacher.jsonl"]
TEACHER = TEACHER[: {"trained": 2, "checkpoint": 1, "file": 0}[TEACHER_ORIGIN]]
TARGETS = f"{TEACHER_FOLDER}/targets.safetensors"
TARGETS_PROBE = f"{TEACHER_FOLDER}/targets_probe.jsonl"
MADE = sorted(METHODS.keys() & config["methods"])
STARTS = [cfg.initial_method(config, method) for method in MADE if METHODS[method].distilled]
USES_EXPERTS = any(METHODS[method].experts for method in [*MADE, *STARTS])
EXPERTS = [f"{EXPERT_FOLDER}/{expert:03d}.safetensors" for expert in range(config["experts"]["count"])] * USES_EXPERTS
SSL_EXPERTS = [f"{EXPERIMENT}/ssl_experts/{expert:03d}.safetensors" for expert in range(config["experts"]["count"])]
MATCHED = [variant for variant in VARIANTS if variant["method"] in [*made_by("distill"), *made_by("mtt")]]
SYNTHETIC = [variant for variant in VARIANTS if variant["method"] in MADE and METHODS[variant["method"]].distilled]
REAL = [TRAINING_SET.format(**variant) for variant in VARIANTS if variant["method"] in made_by("subset")]
DISTILLED = [
    TRAINING_SET.format(**variant).replace(".safetensors", f".{kind}")
    for variant in SYNTHETIC
    for kind in ["safetensors", "jsonl", "png"]
]
PRETRAINED = [
    STUDENT.format(**variant, student=student, seed=seed)
    for variant in VARIANTS
    for student in config["pretrain"]["students"]
    for seed in SEEDS
    if variant["method"] != "teacher"  # it is probed as it is
]
SCORES = sorted(
    {
        SCORE.format(**variant, student=student)
        for variant in VARIANTS
        for student in config["pretrain"]["students"][: 1 if variant["method"] == "teacher" else None]
    }
)


def kept(experts):
    """These experts, but for folders that `mkdt clean` emptied."""
    return [path for path in experts if not (Path(path).parent / cfg.CLEANED).is_file()]


def initial_set(wildcards):
    """The subset that distillation starts from; the high-loss subset is one for all distill seeds."""
    method = cfg.initial_method(config, wildcards["method"])
    seed = wildcards["distill_seed"] if METHODS[method].seeded else 0
    return TRAINING_SET.format(method=method, budget=wildcards["budget"], distill_seed=seed)


SETS = sorted({*REAL, *(initial_set(variant) for variant in SYNTHETIC)}) + DISTILLED
REPORT = [
    f"{EXPERIMENT}/report/{name}"
    for name in [
        "accuracy.csv",
        "summary.csv",
        "summary.md",
        "curve.csv",
        "curve.png",
        "sets.png",
        "matching.png",
        "index.html",
    ]
    if {"sets.png": SYNTHETIC, "matching.png": MATCHED}.get(name, True)
]

# Software of the jobs; `../` because rules name it relative to their own file.
ENVIRONMENT = "../envs/mkdt.yaml"

# A GPU is asked for where there is one, or where the config insists. A cluster's login node says nothing of the nodes
# (and only a cluster's run has `--jobs`): there `auto` asks for one.
GPU = cfg.gpus_per_job(config, cluster=workflow.resource_settings.nodes is not None)
THREADS = config["compute"]["threads"]


def code(stage, *modules):
    """Digest of a stage's script and of the science that it imports (``modules`` by name): code counts as input."""
    return code_digest(Path(workflow.basedir) / "workflow" / "scripts" / f"{stage}.py", *modules)


def training_set(wildcards):
    """What a method trains on: a set file, or all images with their targets, which also give `none` its shapes."""
    if wildcards.method in METHOD_FILES:
        return {"data": SOURCE, "set": METHOD_FILES[wildcards.method]}
    if not cfg.has_budget(wildcards.method):
        return {"data": SOURCE, "targets": TARGETS}
    return {"data": SOURCE, "set": TRAINING_SET.format(**wildcards)}


def students(wildcards):
    """All pre-trained students of one method, budget and architecture, or the teacher in their place."""
    if wildcards.method == "teacher":
        return TEACHER[0]
    return [
        STUDENT.format(**variant, student=wildcards.student, seed=seed)
        for variant in VARIANTS
        if (variant["method"], variant["budget"]) == (wildcards.method, wildcards.budget)
        for seed in SEEDS
    ]


def needs(stage, wildcards):
    """What a job needs, from the sizes in the config."""
    given = {key: wildcards[key] for key in ("dataset", "student", "method", "budget") if key in wildcards.keys()}
    return resources.need(config, stage, **given)


def memory(stage):
    """MB of a job of the stage, more at each attempt."""
    gpus = 0 if stage in resources.WITHOUT_GPU else GPU
    return lambda wildcards, attempt: attempt * resources.memory_mb(needs(stage, wildcards), gpus)


def disk(stage):
    """MB of free space without which a job of the stage does not start. No limit, unless `--resources disk_mb=` sets one."""
    return lambda wildcards: resources.disk_mb(needs(stage, wildcards))


def minutes(stage):
    """Time limit of a job of the stage, more at each attempt; what it did before a limit is not lost."""
    gpus = 0 if stage in resources.WITHOUT_GPU else GPU
    return lambda wildcards, attempt: resources.minutes(needs(stage, wildcards), gpus, THREADS, attempt)


wildcard_constraints:
    dataset="[^/]+",
    method="[^/]+",
    budget="[^/]+",
    student="[^/]+",
    distill_seed=r"\d+",


TRACKER = Tracker(config, cfg.RESULTS)
config["tracking"]["uri"] = None  # it may hold a password, and Snakemake writes the config into each job's script


onstart:
    cfg.register(config, REGISTRY, GIVEN)
    TRACKER.start()
    # With a limit to jobs a timespan, Snakemake looks at all jobs that are ready once a timespan for every job that has finished:
    # after some hundred, a core does nothing else. Its default is dropped here, a limit that was asked for stays.
    limit = getattr(workflow.scheduler, "job_rate_limiter", None)
    if limit and (limit.max_jobs, limit.timespan) == (100, 1):
        workflow.scheduler.job_rate_limiter = None


onsuccess:
    TRACKER.end(True)
    for experts in [EXPERTS, SSL_EXPERTS]:  # all there again
        if experts and all(Path(path).is_file() for path in experts):
            Path(experts[0]).with_name(cfg.CLEANED).unlink(missing_ok=True)
    if Path(REPORT[0]).is_file():
        print(f"Tables and figures: {EXPERIMENT}/report/", file=sys.stderr)


onerror:
    TRACKER.end(False)
