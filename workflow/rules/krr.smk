rule krr:
    input:
        initial=initial_set,
        data=SOURCE,
        targets=TARGETS,
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
        method="|".join(made_by("krr")),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("krr"),
        disk_mb=disk("krr"),
        runtime=minutes("krr"),
    params:
        settings=cfg.settings(config, "krr"),
        code=code("krr", *own_modules(config["students"][config["krr_st"]["student"]]["architecture"])),
    script:
        "../scripts/krr.py"
