rule targets:
    input:
        data=SOURCE,
        teacher=TEACHER[0],
    output:
        TARGETS,
    log:
        f"results/logs/{config['source']}/{config['teacher']['name']}/targets.log",
    benchmark:
        f"results/benchmarks/{config['source']}/{config['teacher']['name']}/targets.tsv"
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("targets"),
        disk_mb=disk("targets"),
        runtime=minutes("targets"),
    params:
        settings=cfg.settings(config, "targets"),
        code=code("targets"),
    script:
        "../scripts/targets.py"
