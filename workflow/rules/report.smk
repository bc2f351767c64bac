# Each study's report from run folders alone, and the study's name as a target.


for study in studies:

    rule:
        name:
            f"report_{study}"
        input:
            lambda _, study=study: targets.results(study),
            lambda _, study=study: targets.configs(study),
        output:
            targets.report(study),
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
