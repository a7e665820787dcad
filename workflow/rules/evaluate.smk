def training_set(wildcards):
    """What a method trains on: a set file, or all images with their targets, which also give `none` its shapes."""
    if wildcards.method in METHOD_FILES:
        return {"data": SOURCE, "set": METHOD_FILES[wildcards.method]}
    if not plan.has_budget(wildcards.method):
        return {"data": SOURCE, "targets": TARGETS}
    return {"data": SOURCE, "set": STAGES["subset"].path(config, "set", wildcards)}


def students(wildcards):
    """All pre-trained students of one method, budget and architecture, or the teacher in their place."""
    if wildcards.method == "teacher":
        return TEACHER
    wanted = dict(wildcards.items()).items()
    chosen = [job for job in JOBS if job.stage == "pretrain" and wanted <= dict(job.names).items()]
    return [path for job in chosen for path in files_of(config, job) if not path.endswith(".jsonl")]


# All seeds of one training set share a job; the probe reads the snapshots, so none of its keys trains again.
rule pretrain:
    input:
        unpack(training_set),
    output:
        **outputs("pretrain", seed=config["pretrain"]["seeds"]),
    log:
        STAGES["pretrain"].log(config),
    benchmark:
        STAGES["pretrain"].benchmark(config)
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **resources_of("pretrain"),
    params:
        **params_of("pretrain"),
    script:
        "../scripts/pretrain.py"


rule probe:
    input:
        source=SOURCE,
        data=[STAGES["data"].path(config, "data", {"dataset": name}) for name in plan.scored_datasets(config)],
        students=students,
    output:
        **outputs("probe"),
    log:
        STAGES["probe"].log(config),
    benchmark:
        STAGES["probe"].benchmark(config)
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **resources_of("probe"),
    params:
        **params_of("probe"),
    script:
        "../scripts/probe.py"
