"""The config folder as a whole: sites, studies, recipes and methods, found by name."""

import os
import re
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ofq.config.datasets import PACKAGED, Dataset, Place, locate
from ofq.config.fields import NAME
from ofq.config.files import Model, parse, read_yaml, suggest
from ofq.config.grid import Parts, expand
from ofq.config.method import Method
from ofq.config.places import expand_path, expand_uri, local_store
from ofq.config.published import Comparison, Published, compare
from ofq.config.reference import Reference
from ofq.config.run import Grid, Run
from ofq.config.runtimes import Minutes, check_models, read
from ofq.config.schema import Recipe, Site, Study
from ofq.errors import UserError
from ofq.redact import refuse_credentials

_FOLDERS = ("results", "reports")
BUNDLE = "bundle.json"
"""The file that marks an unpacked bundle, and says what came in it."""

_MOST_TRAININGS = 100_000


class Workspace:
    """What a checkout defines under ``config/``; each file is read once.

    Args:
        root: The folder that holds ``config/``; results and reports lie below it too.
    """

    def __init__(self, root: Path = Path()) -> None:
        self.root = root
        self._grids: dict[str, Grid] = {}
        self._studies: dict[str, Study] = {}
        self._read = cache(read_yaml)

    @cached_property
    def site(self) -> Site:
        """``config/config.yaml``."""
        path = self.site_path
        if not path.exists():
            raise UserError(f"{path}: no such file; run this in a checkout, where config/ is")
        site = parse(Site, self._read(path), str(path))
        refuse_credentials(site.tracking_uri or "", f"{path}: key 'tracking_uri'")
        places = {key: expand_path(getattr(site, key), f"{path}: key '{key}'") for key in _FOLDERS}
        site = site.model_copy(update=places)
        for name in site.studies:
            if name not in self.study_names:
                hint = suggest(name, self.study_names)
                raise UserError(f"{path}: key 'studies': unknown study '{name}' ({hint})")
        return site

    @property
    def site_path(self) -> Path:
        """The file of the site's settings."""
        return self.root / "config" / "config.yaml"

    @property
    def is_bundle(self) -> bool:
        """Whether this is an unpacked bundle, which came from others: nothing in it is run."""
        return (self.root / BUNDLE).exists()

    def refuse_bundle(self, task: str) -> None:
        """Keep an unpacked bundle from being trained in.

        Args:
            task: What is asked for, for the error.

        Raises:
            UserError: This is one.
        """
        if self.is_bundle:
            raise UserError(
                f"{self.root.resolve()}: can't {task} in an unpacked bundle, which is for reading; "
                "do so in a checkout of the suite, at the commit that `ofq explain` names"
            )

    @property
    def results(self) -> Path:
        """Where run folders and the embedded MLflow store live."""
        return self.root / self.site.results

    @property
    def reports(self) -> Path:
        """Where reports are written, a folder per study."""
        return self.root / self.site.reports

    @property
    def logs(self) -> Path:
        """Where the workflow puts what a run's job prints, as ``RUN.log``."""
        return self.root / "logs" / "train"

    @property
    def tracking_uri(self) -> str:
        """MLflow's store: the site's, ``MLFLOW_TRACKING_URI``, or an SQLite file in the results."""
        variable = "MLFLOW_TRACKING_URI"
        if given := self.site.tracking_uri:
            return expand_uri(given, f"{self.site_path}: key 'tracking_uri'")
        if given := os.environ.get(variable):
            return expand_uri(given, variable)
        return local_store(self.results / "mlflow.db")

    @property
    def dataset_names(self) -> list[str]:
        """Names of the data sets that come with the package or have a file."""
        return sorted({*PACKAGED, *(path.stem for path in self.files("datasets"))})

    def dataset(self, name: str, source: str = "") -> Dataset:
        """Return what a data set is: by its file, or as it comes with the package.

        Args:
            name: Its name.
            source: What names it, for the error.

        Raises:
            UserError: There is no such data set, or its file is wrong.
        """
        if name in PACKAGED and name not in (path.stem for path in self.files("datasets")):
            return PACKAGED[name]
        others = list(PACKAGED)
        path = self._require("datasets", name, "dataset", f"{source}: " if source else "", others)
        return parse(Dataset, self._read(path), str(path))

    def data_place(self, dataset: str) -> Place:
        """Return where a data set lies.

        By the site's ``data``, the variable ``NAME_DIR``, or the data set's file, in this order.

        Raises:
            UserError: None of them says.
        """
        given = (
            self.site.data.get(dataset)
            or os.environ.get(_variable(dataset))
            or self.dataset(dataset).place
        )
        if not given:
            raise UserError(
                f"{self.site_path}: key 'data.{dataset}' is missing: give the folder that has "
                f"{dataset}'s train/ and val/, or set {_variable(dataset)}"
            )
        return locate(expand_path(given, self.data_source(dataset)), self.root)

    def data_source(self, dataset: str) -> str:
        """Return what says where a data set lies, for errors."""
        if self.site.data.get(dataset):
            return f"{self.site_path}: key 'data.{dataset}'"
        if os.environ.get(_variable(dataset)) or not self.dataset(dataset).place:
            return _variable(dataset)
        return f"{self.root / 'config' / 'datasets' / dataset}.yaml: key 'place'"

    def own_file(self, name: str, source: str = "") -> Path:
        """A file of the user's own that a recipe or a study names, such as pretrained weights.

        Args:
            name: What it is called there.
            source: Where it stood, for the error.

        Raises:
            UserError: It names a variable that isn't set, or an unknown user.
        """
        return self.root / expand_path(name, source or f"the file '{name}'")

    @cached_property
    def study_names(self) -> list[str]:
        """The studies that have a file by whose name they can be called."""
        return [path.stem for path in self.files("studies") if _problem_of(path.stem) is None]

    def faults(self) -> list[str]:
        """One line on each study that can't be used, for commands that list all of them."""
        lines: list[str] = []
        for path in self.files("studies"):
            try:
                _check_name(path.stem, path, "study")
                self.grid(path.stem)
            except UserError as error:
                first, *others = str(error).splitlines()
                lines.append(first + (f" (and {len(others)} more)" if others else ""))
        return lines

    @property
    def methods(self) -> dict[str, Method]:
        """The methods of all files in ``config/methods``, by name; without those that are wrong."""
        return self._methods[0]

    @cached_property
    def _methods(self) -> tuple[dict[str, Method], list[str]]:
        """The methods, and what is wrong with others, which may be of no concern."""
        found: dict[str, dict[Path, Method]] = {}
        mistakes: list[str] = []
        for path in self.files("methods"):
            try:
                for name, method in self._methods_of(path).items():
                    found.setdefault(name, {})[path] = method
            except UserError as error:
                mistakes.append(str(error))
        for name, homes in found.items():
            first, *others = homes
            mistakes += [
                f"{path}: method '{name}' is already defined in {first}; rename one"
                for path in others
            ]
        single = {n: next(iter(homes.values())) for n, homes in found.items() if len(homes) == 1}
        return single, mistakes

    def _methods_of(self, path: Path) -> dict[str, Method]:
        if not NAME.fullmatch(path.stem):  # such as a file manager's copy
            _check_name(path.stem, path, "file of methods")
        methods: dict[str, Method] = {}
        for key, data in self._read(path).items():
            _check_name(str(key), path, "method")
            methods[str(key)] = parse(Method, data, f"{path}: method '{key}'")
        return methods

    def study(self, name: str) -> Study:
        """A study's config, by its name; what it ``extends`` gives the keys that it leaves out.

        Raises:
            UserError: There is no such study, or it or one that it extends is wrong.
        """
        if name not in self._studies:
            own, *bases = self.study_files(name)
            data = self._read(own)
            for path in bases:
                data = {**self._read(path), **data}
            self._studies[name] = parse(Study, data, str(self.study_path(name)))
        return self._studies[name]

    def study_files(self, name: str) -> list[Path]:
        """The file of a study, and those of the studies that it extends, nearest first.

        Raises:
            UserError: One isn't there, or they go round in a circle.
        """
        files: list[Path] = []
        base: Any = name
        while base is not None:
            where = f"{files[-1]}: key 'extends': " if files else ""
            path = self._require("studies", str(base), "study", where)
            if path in files:
                raise UserError(f"{where}'{base}' extends this study itself")
            files.append(path)
            base = self._read(path).get("extends")
        return files

    def recipe(self, name: str) -> Recipe:
        """A recipe, by its name."""
        return self._load(Recipe, "recipes", name, "recipe")

    def published(self, dataset: str) -> Published | None:
        """The published recipe for a data set; None if ``config/published`` has none.

        Raises:
            UserError: Its file is wrong.
        """
        path = self.root / "config" / "published" / f"{dataset}.yaml"
        return parse(Published, self._read(path), str(path)) if path.exists() else None

    def compare(self, run: Run, devices: int | None = None) -> Comparison | None:
        """How a run differs from the published recipe; None if none was published for such a run.

        Args:
            run: The run.
            devices: Number of devices that it trains on; None for as many as its recipe asks for.

        Raises:
            UserError: The published recipe's file is wrong.
        """
        count = max(1, run.resources.gpu) if devices is None else devices
        return compare(run.config, count, self.published(run.config.dataset))

    def references(self, study: str) -> list[Reference]:
        """What a study's numbers are held against, in the study's order.

        Raises:
            UserError: A file is wrong, about another data set, or about an unknown method.
        """
        source = f"{self.study_path(study)}: key 'references'"
        dataset = self.recipe(self.study(study).recipe).dataset
        methods, found = ["fp", *self.methods], []
        for name in self.study(study).references:
            found.append(self._load(Reference, "reference", name, "reference"))
            if found[-1].dataset != dataset:
                raise UserError(
                    f"{source}: '{name}' is about {found[-1].dataset}, but the study's recipe "
                    f"trains on {dataset}"
                )
            for value in found[-1].values:
                if value.method not in methods and not self._methods[1]:
                    raise UserError(
                        f"{self.root / 'config' / 'reference' / name}.yaml: unknown method "
                        f"'{value.method}' ({suggest(value.method, methods)})"
                    )
        return found

    def files(self, kind: str) -> list[Path]:
        """The files of one kind under ``config/``, by name; not hidden ones, as editors leave.

        Args:
            kind: ``studies``, ``methods``, ``recipes`` or ``reference``.

        Raises:
            UserError: Their folder can't be read.
        """
        folder = self.root / "config" / kind
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(f"{folder}: {error.strerror}") from None
        return [
            folder / name
            for name in sorted(names)
            if name.endswith(".yaml") and not name.startswith((".", "#"))
        ]

    @property
    def recipe_names(self) -> list[str]:
        """The recipes that have a file."""
        return [path.stem for path in self.files("recipes")]

    @property
    def runtimes_path(self) -> Path:
        """The file of measured time limits, which need not exist."""
        return self.root / "config" / "runtimes.yaml"

    @cached_property
    def runtimes(self) -> dict[str, Minutes]:
        """Time limits by recipe, model and stage that stand in for the recipes'."""
        return read(self.runtimes_path, self.recipe_names)

    def study_path(self, name: str) -> Path:
        """The file that defines a study."""
        return self.root / "config" / "studies" / f"{name}.yaml"

    def recipe_path(self, name: str) -> Path:
        """The file that defines a recipe."""
        return self.root / "config" / "recipes" / f"{name}.yaml"

    def grid(self, name: str) -> Grid:
        """A study's cells; expanded on first use."""
        if name not in self._grids:
            study, path = self.study(name), self.study_path(name)
            self._require("recipes", study.recipe, "recipe", f"{path}: key 'recipe': ")
            for reference in study.references:
                self._require("reference", reference, "reference", f"{path}: key 'references': ")
            recipe = self.recipe(study.recipe)
            self._check_methods(study)
            cells = len(study.models) * len(study.bits) * len(study.methods)
            if (count := cells * len(study.seeds)) > _MOST_TRAININGS:
                raise UserError(
                    f"{path}: {count:,} trainings (models x bits x methods x seeds); allowed: "
                    f"{_MOST_TRAININGS:,}; split the study"
                )
            minutes = self.runtimes.get(study.recipe, {})
            check_models(self.runtimes_path, minutes, study.recipe, recipe.models)
            dataset = self.dataset(
                recipe.dataset, f"{self.recipe_path(study.recipe)}: key 'dataset'"
            )
            parts = Parts(study, recipe, dataset, self.methods, minutes)
            self._grids[name] = expand(name, parts, str(path))
        return self._grids[name]

    def _check_methods(self, study: Study) -> None:
        """Tell of mistakes in the files of methods, if a study lacks one that may stand there."""
        found, mistakes = self._methods
        if mistakes and not found.keys() >= set(study.methods):
            raise UserError("\n".join(mistakes))

    def find(self, run_id: str) -> tuple[Run, list[str]]:
        """A run by its id, and the studies that it belongs to.

        Studies whose files are wrong are passed over, so that a slip in one never stops the runs
        of another.

        Raises:
            UserError: No study has this run.
        """
        found: Run | None = None
        homes: list[str] = []
        broken: list[str] = []
        for name in self.study_names:
            try:
                run = self.grid(name).runs().get(run_id)
            except UserError as error:
                broken.append(str(error))
                continue
            if run is not None:
                found, homes = run, [*homes, name]
        if found is None:
            self._refuse_elsewhere()
            text = f"no study under config/ has a run '{run_id}'; `ofq runs STUDY` lists a study's"
            raise UserError("\n".join(dict.fromkeys([text, *broken])))
        return found, homes

    def uses(self, run: Run, studies: list[str]) -> dict[str, list[str]]:
        """The studies that a run belongs to, and the methods that it is a stage of."""
        cells = [cell for name in studies for cell in self.grid(name).cells]
        methods = [c.method for c in cells if any(run in last.chain() for last in c.runs)]
        return {"studies": studies, "methods": list(dict.fromkeys(methods))}

    def _refuse_elsewhere(self) -> None:
        """Tell somebody whom nothing is found for that this is no checkout, if it isn't."""
        if not (self.root / "config" / "studies").is_dir():
            raise UserError(f"no config/studies in {self.root.resolve()}: run this in a checkout")

    def _require(
        self, kind: str, name: str, word: str, where: str = "", others: Sequence[str] = ()
    ) -> Path:
        """Return the file that defines something.

        Args:
            kind: The folder below ``config``.
            name: The file's name.
            word: What it defines, for the error.
            where: What the error begins with.
            others: Names that are allowed without a file.
        """
        path = self.root / "config" / kind / f"{name}.yaml"
        if not NAME.fullmatch(name) or path not in self.files(kind):  # a path would lead out
            self._refuse_elsewhere()
            hint = suggest(name, sorted({*others, *(p.stem for p in self.files(kind))}))
            raise UserError(f"{where}unknown {word} '{name}' ({hint})")
        return path

    def _load(self, model: type[Model], kind: str, name: str, word: str) -> Model:
        path = self._require(kind, name, word)
        return parse(model, self._read(path), str(path))


def _problem_of(name: str) -> str | None:
    """Why commands, folders and targets can't hold a name; ``fp`` is the baseline's."""
    if not NAME.fullmatch(name):
        return "allowed: letters, digits, '_', '-', '.' and '+', a letter or digit first"
    return "'fp' names the full-precision baseline" if name == "fp" else None


def _check_name(name: str, path: Path, word: str) -> None:
    if problem := _problem_of(name):
        raise UserError(f"{path}: '{name}' can't be the name of a {word}; {problem}")


def _variable(dataset: str) -> str:
    """Return the environment variable that says where a data set lies."""
    return re.sub(r"\W", "_", dataset.upper()) + "_DIR"
