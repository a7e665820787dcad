# All seeds of one training set share a job; the probe reads the snapshots, so none of its keys trains again.
rule pretrain:
    input:
        unpack(training_set),
    output:
        **outputs("pretrain", seed=config["pretrain"]["seeds"]),
    log:
        STAGES["pretrain"].log(config),
    benchmark:
        STAGES["pretrain"].benchmark(config)
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **resources_of("pretrain"),
    params:
        **params_of("pretrain"),
    script:
        "../scripts/pretrain.py"


rule probe:
    input:
        source=SOURCE,
        data=[STAGES["data"].path(config, "data", {"dataset": name}) for name in plan.scored_datasets(config)],
        students=students,
    output:
        **outputs("probe"),
    log:
        STAGES["probe"].log(config),
    benchmark:
        STAGES["probe"].benchmark(config)
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **resources_of("probe"),
    params:
        **params_of("probe"),
    script:
        "../scripts/probe.py"
