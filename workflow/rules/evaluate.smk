# All seeds of one training set share a job, which trains those that no earlier job finished; the probe reads the snapshots,
# so none of its keys trains again.
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


# Chooses on validation; a rule of its own, so that no change of what is measured on test scores the grid again.
rule select:
    input:
        source=SOURCE,
        data=data_files([config["probe"]["selection"]]),
        students=students,
    output:
        **outputs("select"),
    log:
        STAGES["select"].log(config),
    benchmark:
        STAGES["select"].benchmark(config)
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **resources_of("select"),
    params:
        **params_of("select"),
    script:
        "../scripts/select.py"


rule probe:
    input:
        source=SOURCE,
        data=data_files(plan.probed_datasets(config)),
        students=students,
        selection=STAGES["select"].path(config, "selection"),
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
