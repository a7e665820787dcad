rule distill:
    input:
        initial=initial_set,
        experts=EXPERTS,
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
        method="|".join(made_by("distill")),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("distill"),
        disk_mb=disk("distill"),
        runtime=minutes("distill"),
    params:
        settings=cfg.settings(config, "distill"),
        code=code("distill"),
    script:
        "../scripts/distill.py"
