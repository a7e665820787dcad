# `snakemake experts` makes what is missing of them and nothing else (after `mkdt clean`, say).
rule experts:
    input:
        experts_of("experts"),
    localrule: True


# The same for experts of a method's own kind.
rule method_experts:
    input:
        experts_of("method_experts"),
    localrule: True


# One job trains several experts, since a job must be worth its start-up; one expert is one file, the same
# whichever job makes it. So the batch size is no parameter: a change of it makes nothing anew.
for batch in BATCHES:

    rule:
        name:
            f"experts_{int(batch['first'])}_{int(batch['last'])}"
        input:
            data=SOURCE,
            targets=TARGETS,
        output:
            **outputs("experts", **batch),
        log:
            STAGES["experts"].log(config, batch),
        benchmark:
            STAGES["experts"].benchmark(config, batch)
        conda:
            ENVIRONMENT
        threads: THREADS
        resources:
            **resources_of("experts"),
        params:
            **params_of("experts"),
        script:
            "../scripts/experts.py"

    rule:
        name:
            f"method_experts_{int(batch['first'])}_{int(batch['last'])}"
        input:
            unpack(expert_inputs),
        output:
            **outputs("method_experts", **batch),
        log:
            STAGES["method_experts"].log(config, batch),
        benchmark:
            STAGES["method_experts"].benchmark(config, batch)
        wildcard_constraints:
            method="|".join(methods_that(own_experts=True)),
        conda:
            ENVIRONMENT
        threads: THREADS
        resources:
            **resources_of("method_experts"),
        params:
            **params_of("method_experts"),
        script:
            "../scripts/method_experts.py"
