# A study's page, tables and figures, from run folders alone; and the study's name as a target.


rule report:
    input:
        lambda wildcards: targets.results(wildcards.study),
        lambda wildcards: targets.configs(wildcards.study),
    output:
        f"{targets.reports_folder}/{{study}}/index.html",
    log:
        "logs/report/{study}.log",
    resources:
        mem_mb=2000,
        runtime=10,
    shell:
        "ofq report {wildcards.study} > {log} 2>&1 && ofq track sync {wildcards.study} >> {log} 2>&1"


for study in studies:

    rule:
        name:
            study
        input:
            lambda _, study=study: targets.study(study),
        localrule: True
