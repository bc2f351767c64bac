# The whole suite as one workflow: studies become runs, runs become reports.
#
#   snakemake --cores 2            builds the studies that config/config.yaml lists
#   snakemake --cores 2 digits     builds one study; any file in config/studies is a target
#   snakemake --profile slurm      builds the paper's studies (slurm/config.yaml)

import os
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from ofq.errors import UserError
from ofq.runs.slurm import srun
from ofq.config.targets import Targets
from ofq.monitor.check.study import before_start

# jobs find `ofq` beside the Python that runs this, whether or not its environment is active
os.environ["PATH"] = (
    f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
)

try:
    targets = Targets(unnamed=config.get("studies"))
    studies = targets.studies
    # a job on a cluster has one run to find, and must not fail over another study's file
    if workflow.is_main_process:
        words = sys.argv[1:]
        targets.check(words)
        asked, elsewhere = targets.asked(words), targets.elsewhere(words)
        for missing in before_start(targets.workspace, asked, elsewhere):
            logger.warning(missing)
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
        lambda _: targets.unnamed_studies(),


include: "workflow/rules/train.smk"
include: "workflow/rules/report.smk"
