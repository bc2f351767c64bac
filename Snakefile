# The whole suite as one workflow: studies become runs, runs become reports.
#
#   snakemake --cores 2            builds the studies that config/config.yaml lists
#   snakemake --cores 2 digits     builds one study; any file in config/studies is a target
#   snakemake --profile slurm      does it on a cluster (slurm/config.yaml)

import sys

from snakemake.exceptions import WorkflowError

from ofq.errors import UserError
from ofq.study.targets import Targets

try:
    targets = Targets()
    studies = targets.studies
    # a job on a cluster has one run to find, and must not fail over another study's file
    if workflow.is_main_process:
        targets.check(sys.argv[1:])
except UserError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    study="[^/]+",
    run="[^/]+/[^/]+/[^/]+",


localrules:
    all,


rule all:
    default_target: True
    input:
        lambda _: targets.site_studies(),


include: "workflow/rules/train.smk"
include: "workflow/rules/report.smk"
