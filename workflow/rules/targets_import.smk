# Stands for rules teacher and targets where the config brings the representations.
rule targets_import:
    input:
        data=SOURCE,
        file=config["targets"]["file"],
    output:
        TARGETS,
    log:
        f"results/logs/{config['source']}/{config['teacher']['name']}/targets.log",
    benchmark:
        f"results/benchmarks/{config['source']}/{config['teacher']['name']}/targets.tsv"
    conda:
        ENVIRONMENT
    resources:
        mem_mb=memory("targets_import"),
        disk_mb=disk("targets_import"),
        runtime=minutes("targets_import"),
    params:
        settings=cfg.settings(config, "targets"),
        code=code("targets_import"),
    script:
        "../scripts/targets_import.py"
