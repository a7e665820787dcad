# `snakemake experts` makes what is missing of them and nothing else (after `mkdt clean`, say).
rule experts:
    input:
        EXPERTS,
    localrule: True


# One job trains several experts, since a job must be worth its start-up; one expert is one file, the same
# whichever job makes it. So the batch size is no parameter: a change of it makes nothing anew.
for batch in BATCHES:

    rule:
        name:
            f"experts_{batch[0]}_{batch[-1]}"
        input:
            data=SOURCE,
            targets=TARGETS,
        output:
            experts=[f"{EXPERT_FOLDER}/{expert:03d}.safetensors" for expert in batch],
            metrics=f"{EXPERT_FOLDER}/{batch[0]:03d}-{batch[-1]:03d}.jsonl",
        log:
            f"results/logs/{config['source']}/{config['teacher']['name']}/{config['student']}/experts_{batch[0]}.log",
        benchmark:
            f"results/benchmarks/{config['source']}/{config['teacher']['name']}/{config['student']}/experts_{batch[0]}.tsv"
        conda:
            ENVIRONMENT
        threads: THREADS
        resources:
            gpu=GPU,
            mem_mb=memory("experts"),
            disk_mb=disk("experts"),
            runtime=minutes("experts"),
        params:
            settings=cfg.settings(config, "experts"),
            code=code("experts"),
        script:
            "../scripts/experts.py"
