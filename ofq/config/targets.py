"""Files of the studies as the workflow's targets, and the inputs of each job."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from ofq.config.files import suggest
from ofq.config.run import Run
from ofq.config.schema import Study
from ofq.config.workspace import Workspace
from ofq.console import printable
from ofq.errors import UserError

RESULT = "result.json"
WEIGHTS = "model.safetensors"
PAGE = "index.html"
PRINTED = ("table.md", "table.tex", "measures.tex")
_RULES = {"all", "reports", "train", "train_short"}
_SHOWING = frozenset(
    {
        "--archive", "--cleanup-metadata", "--cm", "--d3dag", "--dag", "--delete-all-output",
        "--detailed-summary", "-D", "--filegraph", "--help", "-h", "--lint", "--list", "-l",
        "--list-changes", "--list-input-changes", "--list-rules", "--list-target-rules", "--lt",
        "--print-compilation", "--report", "--rulegraph", "--summary", "-S", "--touch", "-t",
        "--unlock",
    }
)  # fmt: skip
"""Snakemake's options that start no job."""

_DRY = re.compile(r"--dry-?run|-[a-zA-Z]*n[a-zA-Z]*")
_ELSEWHERE = ("--executor", "-e", "--profile", "--cluster")
_NOTHING = "(?!)"  # a pattern that matches no run


class Targets:
    """Studies as files, relative to the checkout; each look-up takes constant time.

    Args:
        root: The checkout.
        unnamed: The default studies, with commas between them; left out, the site's.

    Raises:
        UserError: ``config/config.yaml`` is wrong, or there is no such study.
    """

    def __init__(self, root: Path = Path(), unnamed: str | None = None) -> None:
        self.workspace = Workspace(root)
        self.unnamed = unnamed.split(",") if unnamed else self.workspace.site.studies
        for name in self.unnamed:
            if name not in self.workspace.study_names:
                hint = suggest(name, self.workspace.study_names)
                raise UserError(f"studies={unnamed}: unknown study '{name}' ({hint})")
        for key in ("results", "reports"):
            place = getattr(self.workspace.site, key)
            if set("{}") & set(place):
                raise UserError(
                    f"{self.workspace.site_path}: key '{key}' is '{place}': Snakemake takes braces "
                    "for wildcards; name a folder without them"
                )
        self.runs_folder = str(self.workspace.results / "runs")
        self.logs_folder = str(self.workspace.logs)
        self.reports_folder = str(self.workspace.reports)
        self._runs: dict[str, Run] = {}

    @cached_property
    def studies(self) -> list[str]:
        """Studies that can be targets: all whose name isn't that of another rule."""
        return [name for name in self.workspace.study_names if not self._is_rule(name)]

    def _is_rule(self, name: str) -> bool:
        studied = name.removeprefix("report_")
        return name in _RULES or (studied != name and studied in self.workspace.study_names)

    def faults(self) -> list[str]:
        """Return one line for each study that can't be built."""
        misnamed = [n for n in self.workspace.study_names if self._is_rule(n)]
        return [*self.workspace.faults(), *map(self._misnamed, misnamed)]

    def _misnamed(self, name: str) -> str:
        path = self.workspace.study_path(name)
        return f"{path}: '{name}' is the name of a rule; rename the study"

    def check(self, arguments: Iterable[str]) -> None:
        """Expand the requested studies, or else the default ones, so that mistakes show first.

        Args:
            arguments: The command line; words that aren't studies are ignored.

        Raises:
            UserError: The config of one is wrong.
        """
        named = set(arguments).intersection(self.studies)
        for name in named or self.unnamed:
            if name not in self.studies:
                raise UserError(self._misnamed(name))
            self.study(name)

    def asked(self, arguments: Sequence[str]) -> list[str]:
        """Return the studies whose runs a call of Snakemake may start.

        None if it only shows something, or asks for single files or for reports of finished runs.

        Args:
            arguments: The command line.
        """
        if any(word.partition("=")[0] in _SHOWING for word in arguments):
            return []
        words = [word.removeprefix("report_") for word in arguments]
        named = [name for name in self.studies if name in words]
        files = tuple(f"{folder}/" for folder in (self.runs_folder, self.reports_folder))
        others = "reports" in arguments or any(word.startswith(files) for word in arguments)
        return named or ([] if others else [n for n in self.unnamed if n in self.studies])

    @staticmethod
    def elsewhere(arguments: Sequence[str]) -> bool:
        """Return whether a call of Snakemake may start jobs on other machines, or starts none.

        Args:
            arguments: The command line.
        """
        if "SNAKEMAKE_PROFILE" in os.environ:
            return True
        return any(
            _DRY.fullmatch(word) or word.partition("=")[0] in _ELSEWHERE for word in arguments
        )

    def unnamed_studies(self) -> list[str]:
        """Return the files of the default studies."""
        return [path for name in self.unnamed for path in self.study(name)]

    def study(self, name: str) -> list[str]:
        """Return the files that make a study complete: its report, and the results of its cells."""
        return [*self.report(name), *self.results(name)]

    def report(self, name: str) -> list[str]:
        """Return the files of a study's report; the page alone if the study's file is wrong."""
        return [self.page(name), *self.tables(name), *self.figures(name, "png", "svg")]

    def page(self, name: str) -> str:
        """Return the page of a study's report."""
        return f"{self.reports_folder}/{name}/{PAGE}"

    def tables(self, name: str) -> list[str]:
        """Return the tables of a study's report."""
        study = self._study(name)
        if study is None:
            return []
        frames = ["table", "runs", "differences"]
        frames += ["verdicts"] * bool(study.references) + ["effects"] * bool(study.factors)
        frames += ["claims"] * bool(study.claims) + ["baselines"] * bool(study.baselines)
        files = [f"{frame}.{kind}" for frame in frames for kind in ("csv", "parquet")]
        return [f"{self.reports_folder}/{name}/{file}" for file in (*PRINTED, *files)]

    def figures(self, name: str, *kinds: str) -> list[str]:
        """Return the figures of a study's report, in the given file formats."""
        study = self._study(name)
        figures = study.figures if study else []
        folder = f"{self.reports_folder}/{name}/figures"
        return [f"{folder}/{figure}.{kind}" for figure in figures for kind in kinds]

    def _study(self, name: str) -> Study | None:
        """Return a study's config; None if its file is wrong, which :meth:`check` reports."""
        try:
            return self.workspace.study(name)
        except UserError:
            return None

    def reports(self, tell: Callable[[str], object]) -> list[str]:
        """Return the files of all reports whose studies have all of their runs; train nothing.

        Args:
            tell: Called with a line for each study that is left out since its file is wrong.
        """
        for line in self.faults():
            tell(printable(line))
        return [path for name in self.studies if self._finished(name) for path in self.report(name)]

    def _finished(self, name: str) -> bool:
        try:
            results = self.results(name)
        except UserError:  # of a study that isn't asked for
            return False
        return all((self.workspace.root / path).exists() for path in results)

    def results(self, name: str) -> list[str]:
        """Return the results of a study's cells."""
        runs = self._expand(name)
        cells = self.workspace.grid(name).cells
        wanted = dict.fromkeys(run.id for cell in cells for run in cell.runs)
        return [self._file(runs[run], RESULT) for run in wanted]

    def configs(self, name: str) -> list[str]:
        """Return the config files that a report depends on."""
        shared = [
            path
            for kind in ("methods", "reference", "claims")
            for path in self.workspace.files(kind)
        ]
        return [str(path) for path in (*self.workspace.study_files(name), *shared)]

    def needs(self, run: str) -> list[str]:
        """Return the weights of a run's parent and teacher."""
        return [self._file(needed, WEIGHTS) for needed in self.run(run).needs()]

    def short_runs(self) -> str:
        """Return a pattern of the runs that are short by all recipes for their data set and model.

        A recipe or study whose file is wrong is skipped; the study that uses it reports it.
        """
        short: dict[str, bool] = {}
        workspace = self.workspace
        for name, recipe_named in (
            *((name, workspace.recipe) for name in workspace.recipe_names),
            *((name, workspace.recipe_of) for name in workspace.study_names),
        ):
            with suppress(UserError):
                recipe = recipe_named(name)
                for model in recipe.models:
                    folder = f"{recipe.dataset}/{model}"
                    short[folder] = short.get(folder, True) and recipe.short
        folders = [re.escape(folder) for folder, is_short in short.items() if is_short]
        return f"({'|'.join(folders)})/[^/]+" if folders else _NOTHING

    def run(self, run_id: str) -> Run:
        """Return a run by its id; all studies are expanded if no requested one has it.

        Raises:
            UserError: No study has this run.
        """
        if run_id not in self._runs:
            self._runs[run_id] = self.workspace.find(run_id)[0]
        return self._runs[run_id]

    def _expand(self, name: str) -> dict[str, Run]:
        runs = self.workspace.grid(name).runs()
        self._runs |= runs
        return runs

    def _file(self, run: Run, name: str) -> str:
        return f"{self.runs_folder}/{run.id}/{name}"
