# All seeds of one training set share a job; the probe reads the snapshots, so none of its keys trains again.
rule pretrain:
    input:
        unpack(training_set),
    output:
        students=expand(STUDENT, seed=SEEDS, allow_missing=True),
        metrics=f"{EXPERIMENT}/pretrain/{{student}}/{{method}}/{{budget}}/{{distill_seed}}/metrics.jsonl",
    log:
        f"results/logs/{config['experiment']}/pretrain/{{student}}/{{method}}/{{budget}}/{{distill_seed}}.log",
    benchmark:
        f"results/benchmarks/{config['experiment']}/pretrain/{{student}}/{{method}}/{{budget}}/{{distill_seed}}.tsv"
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("pretrain"),
        disk_mb=disk("pretrain"),
        runtime=minutes("pretrain"),
    params:
        settings=lambda wildcards: cfg.settings(config, "pretrain", student=wildcards.student, method=wildcards.method),
        code=lambda wildcards: code("pretrain", *own_modules(config["students"][wildcards.student]["architecture"])),
    script:
        "../scripts/pretrain.py"
