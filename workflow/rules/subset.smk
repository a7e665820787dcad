rule subset:
    input:
        data=SOURCE,
        targets=TARGETS,
        experts=lambda wildcards: EXPERTS if METHODS[wildcards.method].experts else [],
        teacher=lambda wildcards: TEACHER[0] if METHODS[wildcards.method].teacher else [],
    output:
        TRAINING_SET,
    log:
        f"results/logs/{config['experiment']}/sets/{{method}}/{{budget}}/{{distill_seed}}.log",
    benchmark:
        f"results/benchmarks/{config['experiment']}/sets/{{method}}/{{budget}}/{{distill_seed}}.tsv"
    wildcard_constraints:
        method="|".join(made_by("subset")),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=lambda wildcards: GPU if METHODS[wildcards.method].teacher else 0,
        mem_mb=memory("subset"),
        disk_mb=disk("subset"),
        runtime=minutes("subset"),
    params:
        settings=lambda wildcards: cfg.settings(config, "subset", method=wildcards.method, budget=wildcards.budget),
        code=lambda wildcards: code("subset", METHODS[wildcards.method].module),
    script:
        "../scripts/subset.py"
