if TEACHER_ORIGIN == "trained":

    DEVICES, DECLARED = config["teacher"]["devices"], internals.declared_gpus(workflow)

    # Snakemake would lower the request without a word, and the processes would use GPUs that it believes to be free.
    if internals.is_main_process(workflow) and DECLARED is not None and GPU * DEVICES > DECLARED:
        raise WorkflowError(
            f"config: teacher.devices is {DEVICES}, but this run may use {DECLARED} GPU(s) at a time: lower it. "
            "These are the GPUs of the machine, unless CUDA_VISIBLE_DEVICES or --resources gpu=N says another number."
        )
    # With several jobs a GPU, the limit counts each GPU several times, but the teacher's processes need one each.
    SHARED = config["compute"]["jobs_per_gpu"] > 1 and internals.is_main_process(workflow) and not ON_A_CLUSTER
    if SHARED and 1 < DEVICES * GPU > len(machine_gpus()):
        raise WorkflowError(
            f"config: teacher.devices is {DEVICES}, but this machine has {len(machine_gpus())} GPU(s): lower it."
        )

    rule teacher:
        input:
            data=SOURCE,
        output:
            **outputs("teacher"),
        log:
            STAGES["teacher"].log(config),
        benchmark:
            STAGES["teacher"].benchmark(config)
        conda:
            ENVIRONMENT
        threads: DEVICES * THREADS
        resources:
            **resources_of("teacher", gpus=DEVICES, processes=DEVICES),
        params:
            **params_of("teacher"),
        script:
            "../scripts/teacher.py"


if TEACHER_ORIGIN == "checkpoint":
    CHECKPOINT = config["teacher"]["checkpoint"]["file"]

    # Stands for rule teacher where the config brings a checkpoint: the same file, so all later stages are the same.
    rule teacher_import:
        input:
            **({"checkpoint": CHECKPOINT} if CHECKPOINT else {}),
            data=SOURCE,
        output:
            **outputs("teacher_import"),
        log:
            STAGES["teacher_import"].log(config),
        benchmark:
            STAGES["teacher_import"].benchmark(config)
        conda:
            ENVIRONMENT
        threads: THREADS
        resources:
            **resources_of("teacher_import"),
        params:
            **params_of("teacher_import"),
        script:
            "../scripts/teacher_import.py"


if TEACHER_ORIGIN != "file":

    rule targets:
        input:
            data=SOURCE,
            teacher=TEACHER,
        output:
            **outputs("targets"),
        log:
            STAGES["targets"].log(config),
        benchmark:
            STAGES["targets"].benchmark(config)
        conda:
            ENVIRONMENT
        threads: THREADS
        resources:
            **resources_of("targets"),
        params:
            **params_of("targets"),
        script:
            "../scripts/targets.py"

else:

    # Stands for rules teacher and targets where the config brings the representations.
    rule targets_import:
        input:
            data=SOURCE,
            file=config["targets"]["file"],
        output:
            **outputs("targets_import"),
        log:
            STAGES["targets_import"].log(config),
        benchmark:
            STAGES["targets_import"].benchmark(config)
        conda:
            ENVIRONMENT
        resources:
            **resources_of("targets_import"),
        params:
            **params_of("targets_import"),
        script:
            "../scripts/targets_import.py"


if plan.targets_stage(config) == "target_space":

    # The targets that students are trained on. Several spaces of one teacher lie side by side.
    rule target_space:
        input:
            representations=REPRESENTATIONS,
        output:
            **outputs("target_space"),
        log:
            STAGES["target_space"].log(config),
        benchmark:
            STAGES["target_space"].benchmark(config)
        conda:
            ENVIRONMENT
        threads: THREADS
        resources:
            **resources_of("target_space"),
        params:
            **params_of("target_space"),
        script:
            "../scripts/target_space.py"


# Says what the targets are worth before a hundred experts are trained on them; a rule of its own, so that a change of
# the probe makes no target and no expert anew. The priority runs it first where an expert could start as well.
rule targets_probe:
    input:
        **({"teacher": TEACHER} if TEACHER_ORIGIN == "checkpoint" else {}),
        data=SOURCE,
        targets=REPRESENTATIONS,
    output:
        **outputs("targets_probe"),
    log:
        STAGES["targets_probe"].log(config),
    benchmark:
        STAGES["targets_probe"].benchmark(config)
    priority: 1
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **resources_of("targets_probe"),
    params:
        **params_of("targets_probe"),
    script:
        "../scripts/targets_probe.py"
