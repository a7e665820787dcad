rule subset:
    input:
        data=SOURCE,
        targets=TARGETS,
        experts=lambda wildcards: EXPERTS if wildcards.method == "high_loss" else [],
    output:
        TRAINING_SET,
    log:
        f"results/logs/{config['experiment']}/sets/{{method}}/{{budget}}/{{distill_seed}}.log",
    benchmark:
        f"results/benchmarks/{config['experiment']}/sets/{{method}}/{{budget}}/{{distill_seed}}.tsv"
    wildcard_constraints:
        method="random|high_loss",
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=memory("subset"),
        runtime=minutes("subset"),
    params:
        settings=lambda wildcards: cfg.settings(config, "subset", budget=wildcards.budget),
        code=code("subset"),
    script:
        "../scripts/subset.py"
