# One rule for every stage: what a run computes is in its id, what it needs in its recipe.
# Only final files are declared, since Snakemake deletes the declared files of a failed job;
# resumable state lies beside them, and `ofq train` goes on from it by itself.


rule train:
    input:
        # a run's id holds its parents' hashes, so only their absence matters, never their age
        lambda wildcards: ancient(targets.needs(wildcards.run)),
    output:
        f"{targets.runs_folder}/{{run}}/result.json",
        f"{targets.runs_folder}/{{run}}/model.safetensors",
        f"{targets.runs_folder}/{{run}}/metrics.parquet",
    log:
        f"{targets.logs_folder}/{{run}}.log",
    threads: lambda wildcards: targets.run(wildcards.run).resources.threads
    resources:
        mem_mb=lambda wildcards: targets.run(wildcards.run).resources.mem_mb,
        runtime=lambda wildcards: targets.run(wildcards.run).resources.runtime,
        gpu=lambda wildcards: targets.run(wildcards.run).resources.gpu,
    params:
        launcher="",
        # a scheduler ends a job at its limit; here, nobody does
        limit=lambda wildcards, resources: (
            f"--time-limit {resources.runtime}"
            if workflow.remote_exec or not workflow.local_exec
            else ""
        ),
    shell:
        # waits for a trainer that an earlier call of the workflow left behind, and takes what it made
        "{params.launcher} ofq train {wildcards.run} --devices {resources.gpu} --wait {params.limit}"
        " >> {log} 2>&1"


# Submitting a job costs seconds, and minutes may pass until its end is noticed. On a cluster, a
# short run is therefore started from here, on a node of the cluster, and waited for.
use rule train as train_short with:
    wildcard_constraints:
        run=targets.short_runs(),
    params:
        launcher=lambda wildcards, threads, resources: (
            "" if workflow.local_exec else srun(resources, threads, wildcards.run)
        ),


ruleorder: train_short > train


localrules:
    train_short,
