# `snakemake track_sync`: the process that sends runs stands beside every Snakemake; this waits until it has sent all that
# earlier ones left, or fails. No output: it runs whenever it is asked for.
rule track_sync:
    log:
        f"results/logs/{config['experiment']}/track_sync.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        experiment=config["experiment"],
    script:
        "../scripts/track_sync.py"
