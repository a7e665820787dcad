# Says what the targets are worth before a hundred experts are trained on them; a rule of its own, so that a change of
# the probe makes no target and no expert anew. The priority runs it first where an expert could start as well.
rule targets_probe:
    input:
        data=SOURCE,
        targets=TARGETS,
    output:
        TARGETS_PROBE,
    log:
        f"results/logs/{config['source']}/{config['teacher']['name']}/targets_probe.log",
    benchmark:
        f"results/benchmarks/{config['source']}/{config['teacher']['name']}/targets_probe.tsv"
    priority: 1
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        mem_mb=memory("targets_probe"),
        disk_mb=disk("targets_probe"),
        runtime=minutes("targets_probe"),
    params:
        settings=cfg.settings(config, "targets_probe"),
        code=code("targets_probe"),
    script:
        "../scripts/targets_probe.py"
