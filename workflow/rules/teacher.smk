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
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("teacher"),
        runtime=minutes("teacher"),
    params:
        settings=cfg.settings(config, "teacher"),
        code=code("teacher"),
    script:
        "../scripts/teacher.py"
