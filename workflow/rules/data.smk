# Local, since a cluster's nodes often have no way out to download anything.
rule data:
    output:
        **outputs("data"),
    log:
        STAGES["data"].log(config),
    benchmark:
        STAGES["data"].benchmark(config)
    localrule: True
    conda:
        ENVIRONMENT
    # Worth asking for (Snakemake gives what there are): several for image files, one for arrays.
    threads: lambda wildcards: 8 if sizes.consists_of_files(config, wildcards.dataset) else 1
    resources:
        **resources_of("data"),
    params:
        **params_of("data"),
    script:
        "../scripts/data.py"
