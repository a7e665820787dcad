SYNTHETIC = plan.distilled(config)


rule report:
    input:
        selections=sorted(made_by("select")),
        scores=sorted(made_by("probe")),
        data=data_files(config["probe"]["downstream"]),
        targets_probe=STAGES["targets_probe"].path(config, "metrics"),
        targets=TARGETS,
        trained=[set_file(names) for names in plan.first_sets(config)],
        sets=[STAGES["distill"].path(config, "set", names) for names in SYNTHETIC],
        metrics=[STAGES["distill"].path(config, "metrics", names) for names in plan.matched(config)],
        initial=[STAGES["subset"].path(config, "set", plan.initial_set(config, names)) for names in SYNTHETIC],
        evolution=[STAGES["distill"].path(config, "evolution", names) for names in SYNTHETIC],
        # Relative: a checkout that moved makes nothing anew.
        template=os.path.relpath(Path(workflow.basedir) / "workflow" / "report" / "index.html.jinja"),
    output:
        **{
            role: report(
                path,
                caption=f"../report/{Path(path).stem}.rst",
                category="Results" if role != "sets_png" else "Synthetic sets",
                labels={"file": Path(path).name},
            )
            for role, path in outputs("report").items()
            if path in made_by("report")
        },
    log:
        STAGES["report"].log(config),
    benchmark:
        STAGES["report"].benchmark(config)
    localrule: True
    conda:
        ENVIRONMENT
    resources:
        **resources_of("report"),
    params:
        **params_of("report"),
    script:
        "../scripts/report.py"


# `snakemake track_sync`: the process that sends runs stands beside every Snakemake; this waits until it has sent all that
# earlier ones left, or fails. No output: it runs whenever it is asked for.
rule track_sync:
    log:
        f"{result_folders.RESULTS}/{result_folders.LOGS}/{config['experiment']}/track_sync.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        experiment=config["experiment"],
    script:
        "../scripts/track_sync.py"
