rule subset:
    input:
        unpack(set_inputs),
    output:
        **outputs("subset"),
    log:
        STAGES["subset"].log(config),
    benchmark:
        STAGES["subset"].benchmark(config)
    wildcard_constraints:
        method="|".join(methods_that(stage="subset")),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **resources_of("subset") | {"gpu": lambda wildcards: GPU if "teacher" in set_inputs(wildcards) else 0},
    params:
        **params_of("subset"),
    script:
        "../scripts/subset.py"


# All methods that distil, built-in ones and those of `mkdt.extensions`.
rule distill:
    input:
        unpack(set_inputs),
    output:
        **outputs("distill")
        | {
            "evolution": report(
                output("distill", "evolution"),
                caption="../report/evolution.rst",
                category="Synthetic sets",
                labels={"method": "{method}", "budget": "{budget}", "distill seed": "{distill_seed}"},
            )
        },
    log:
        STAGES["distill"].log(config),
    benchmark:
        STAGES["distill"].benchmark(config)
    wildcard_constraints:
        method="|".join(methods_that(stage="distill")),
    conda:
        ENVIRONMENT
    threads: THREADS
    resources:
        **resources_of("distill"),
    params:
        **params_of("distill"),
    script:
        "../scripts/distill.py"
