rule own:
    input:
        initial=initial_set,
        data=SOURCE,
        targets=TARGETS,
        experts=lambda wildcards: EXPERTS if METHODS[wildcards.method].experts else [],
        teacher=lambda wildcards: TEACHER[0] if METHODS[wildcards.method].teacher else [],
    output:
        set=f"{EXPERIMENT}/sets/{{method}}/{{budget}}/{{distill_seed}}.safetensors",
        metrics=f"{EXPERIMENT}/sets/{{method}}/{{budget}}/{{distill_seed}}.jsonl",
        evolution=report(
            f"{EXPERIMENT}/sets/{{method}}/{{budget}}/{{distill_seed}}.png",
            caption="../report/evolution.rst",
            category="Synthetic sets",
            labels={"method": "{method}", "budget": "{budget}", "distill seed": "{distill_seed}"},
        ),
    log:
        f"results/logs/{config['experiment']}/sets/{{method}}/{{budget}}/{{distill_seed}}.log",
    benchmark:
        f"results/benchmarks/{config['experiment']}/sets/{{method}}/{{budget}}/{{distill_seed}}.tsv"
    wildcard_constraints:
        method="|".join(made_by("own")),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("own"),
        disk_mb=disk("own"),
        runtime=minutes("own"),
    params:
        settings=lambda wildcards: cfg.settings(config, "own", method=wildcards.method),
        code=lambda wildcards: code("own", METHODS[wildcards.method].module),
    script:
        "../scripts/own.py"
