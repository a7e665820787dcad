# Stands for rule teacher where the config brings a checkpoint: the same file, so all later stages are the same.
CHECKPOINT = config["teacher"]["checkpoint"]["file"]


rule teacher_import:
    input:
        **({"checkpoint": CHECKPOINT} if CHECKPOINT else {}),
        data=SOURCE,
    output:
        teacher=TEACHER[0],
    log:
        f"results/logs/{config['source']}/{config['teacher']['name']}/teacher.log",
    benchmark:
        f"results/benchmarks/{config['source']}/{config['teacher']['name']}/teacher.tsv"
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        mem_mb=memory("teacher_import"),
        disk_mb=disk("teacher_import"),
        runtime=minutes("teacher_import"),
    params:
        settings=cfg.settings(config, "teacher"),
        code=code("teacher_import"),
    script:
        "../scripts/teacher_import.py"
