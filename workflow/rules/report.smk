rule report:
    input:
        scores=SCORES,
        sets=[TRAINING_SET.format(**variant) for variant in SYNTHETIC],
        metrics=[TRAINING_SET.format(**variant).replace(".safetensors", ".jsonl") for variant in MATCHED],
        initial=[initial_set(variant) for variant in SYNTHETIC],
        evolution=[TRAINING_SET.format(**variant).replace(".safetensors", ".png") for variant in SYNTHETIC],
        # Relative: a checkout that moved makes nothing anew.
        template=os.path.relpath(Path(workflow.basedir) / "workflow" / "report" / "index.html.jinja"),
    output:
        **{
            name.replace(".", "_"): report(
                path,
                caption=f"../report/{name.rsplit('.', 1)[0]}.rst",
                category="Results" if name != "sets.png" else "Synthetic sets",
                labels={"file": name},
            )
            for path in REPORT
            for name in [path.rsplit("/", 1)[1]]
        },
    log:
        f"results/logs/{config['experiment']}/report.log",
    benchmark:
        f"results/benchmarks/{config['experiment']}/report.tsv"
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        mem_mb=memory("report"),
        disk_mb=disk("report"),
        runtime=minutes("report"),
    params:
        settings=cfg.settings(config, "report"),
        code=code("report"),
    script:
        "../scripts/report.py"
