# The whole suite as one workflow: studies become runs, runs become reports.
#
#   snakemake --cores 2            builds the studies that config/config.yaml lists
#   snakemake --cores 2 digits     builds one study; any file in config/studies is a target
#   snakemake --profile slurm      does it on a cluster (slurm/config.yaml)

from snakemake.exceptions import WorkflowError

from ofq.errors import UserError
from ofq.study.targets import Targets

try:
    targets = Targets()
    studies = targets.studies
except UserError as error:
    raise WorkflowError(str(error)) from None


wildcard_constraints:
    study="[^/]+",
    run="[^/]+/[^/]+/[^/]+",


localrules:
    all,


rule all:
    input:
        lambda _: targets.site_studies(),
    default_target: True


include: "workflow/rules/train.smk"
include: "workflow/rules/report.smk"
