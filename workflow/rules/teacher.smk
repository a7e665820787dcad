DEVICES = config["teacher"]["devices"]
GPUS_DECLARED = workflow.global_resources.get("gpu").value  # None: no limit

# Snakemake would lower the request without a word, and the processes would use GPUs that it believes to be free.
if workflow.is_main_process and GPUS_DECLARED is not None and GPU * DEVICES > GPUS_DECLARED:
    raise WorkflowError(
        f"config: teacher.devices is {DEVICES}, but this run may use {GPUS_DECLARED} GPU(s) at a time: lower it, "
        f"or allow more with --resources gpu={DEVICES}."
    )


rule teacher:
    input:
        data=SOURCE,
    output:
        teacher=TEACHER[0],
        metrics=TEACHER[1],
    log:
        f"results/logs/{config['source']}/{config['teacher']['name']}/teacher.log",
    benchmark:
        f"results/benchmarks/{config['source']}/{config['teacher']['name']}/teacher.tsv"
    conda:
        ENVIRONMENT
    threads: DEVICES * THREADS
    resources:
        gpu=GPU * DEVICES,
        mem_mb=lambda wildcards, attempt: DEVICES * memory("teacher")(wildcards, attempt),
        disk_mb=disk("teacher"),
        runtime=minutes("teacher"),
    params:
        settings=cfg.settings(config, "teacher"),
        code=code("teacher"),
    script:
        "../scripts/teacher.py"
