# As `snakemake experts`, for those of mtt_ssl.
rule sslexperts:
    input:
        SSL_EXPERTS,
    localrule: True


# The experts of mtt_ssl are trained by SSL, not by regression; batches as for the others.
for batch in BATCHES:

    rule:
        name:
            f"sslexperts_{batch[0]}_{batch[-1]}"
        input:
            data=SOURCE,
        output:
            experts=[SSL_EXPERTS[expert] for expert in batch],
            metrics=f"{EXPERIMENT}/ssl_experts/{batch[0]:03d}-{batch[-1]:03d}.jsonl",
        log:
            f"results/logs/{config['experiment']}/sslexperts_{batch[0]}.log",
        benchmark:
            f"results/benchmarks/{config['experiment']}/sslexperts_{batch[0]}.tsv"
        conda:
            ENVIRONMENT
        threads: THREADS
        resources:
            gpu=GPU,
            mem_mb=memory("sslexperts"),
            disk_mb=disk("sslexperts"),
            runtime=minutes("sslexperts"),
        params:
            settings=cfg.settings(config, "sslexperts"),
            code=code("sslexperts"),
        script:
            "../scripts/sslexperts.py"


rule mtt:
    input:
        initial=initial_set,
        experts=SSL_EXPERTS,
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
        method="|".join(made_by("mtt")),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        gpu=GPU,
        mem_mb=memory("mtt"),
        disk_mb=disk("mtt"),
        runtime=minutes("mtt"),
    params:
        settings=cfg.settings(config, "mtt"),
        code=code("mtt"),
    script:
        "../scripts/mtt.py"
