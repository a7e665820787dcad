rule data:
    output:
        "results/{dataset}/data.safetensors",
    log:
        "results/logs/{dataset}/data.log",
    benchmark:
        "results/benchmarks/{dataset}/data.tsv"
    conda:
        ENVIRONMENT
    threads: lambda wildcards: cfg.decoding_threads(config, wildcards.dataset)
    resources:
        mem_mb=lambda wildcards, attempt: attempt * cfg.decoding_memory(config, wildcards.dataset),
        runtime=minutes,
    params:
        settings=lambda wildcards: cfg.settings(config, "data", dataset=wildcards.dataset),
        code=code("data"),
    script:
        "../scripts/data.py"
