# Local, since a cluster's nodes often have no way out to download anything.
rule data:
    output:
        "results/{dataset}/data.safetensors",
    log:
        "results/logs/{dataset}/data.log",
    benchmark:
        "results/benchmarks/{dataset}/data.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    threads: lambda wildcards: cfg.decoding_threads(config, wildcards.dataset)
    resources:
        mem_mb=memory("data"),
        disk_mb=disk("data"),
        runtime=minutes("data"),
    params:
        settings=lambda wildcards: cfg.settings(config, "data", dataset=wildcards.dataset),
        code=lambda wildcards: code("data", *own_modules(config["datasets"][wildcards.dataset]["kind"])),
    script:
        "../scripts/data.py"
