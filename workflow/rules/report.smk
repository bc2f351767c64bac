# Each study's report from run folders alone, and the study's name as a target. `snakemake --report`
# puts pages and figures into one file.


for study in studies:

    rule:
        name:
            f"report_{study}"
        input:
            lambda _, study=study: targets.results(study),
            lambda _, study=study: targets.configs(study),
        output:
            report(targets.page(study), category=study),
            [report(path, category=study) for path in targets.figures(study, "svg")],
            targets.figures(study, "png"),
            targets.tables(study),
        log:
            f"logs/report/{study}.log",
        localrule: True
        resources:
            mem_mb=2000,
            runtime=10,
        params:
            study=study,
        shell:
            # a report never fails over the mirror
            "ofq report {params.study} > {log} 2>&1 && "
            "(ofq track sync {params.study} >> {log} 2>&1 || true)"

    rule:
        name:
            study
        input:
            lambda _, study=study: targets.study(study),
        localrule: True


# The reports of all studies whose runs are there, and the page of all studies; trains nothing. What it
# must leave out is named.
rule reports:
    input:
        lambda _: targets.reports(logger.warning),
    log:
        "logs/report/overview.log",
    localrule: True
    shell:
        "ofq overview > {log} 2>&1"
