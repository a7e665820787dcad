rule probe:
    input:
        source=SOURCE,
        data=[f"results/{name}/data.safetensors" for name in cfg.scored_datasets(config)],
        students=students,
    output:
        SCORE,
    log:
        f"results/logs/{config['experiment']}/probe/{{student}}/{{method}}/{{budget}}.log",
    benchmark:
        f"results/benchmarks/{config['experiment']}/probe/{{student}}/{{method}}/{{budget}}.tsv"
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("probe"),
        disk_mb=disk("probe"),
        runtime=minutes("probe"),
    params:
        settings=cfg.settings(config, "probe"),
        code=lambda wildcards: code("probe", *own_modules(config["students"][wildcards.student]["architecture"])),
    script:
        "../scripts/probe.py"
