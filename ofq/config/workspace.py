"""Config folder as a whole: site, studies, recipes and methods, found by name."""

import os
import re
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ofq.config.claims import Claim, Claims
from ofq.config.datasets import PACKAGED, Dataset, Download, Place, any_of, locate
from ofq.config.files import Model, parse, read_yaml, suggest
from ofq.config.grid import Parts, expand
from ofq.config.method import Method
from ofq.config.places import expand_path, expand_uri, local_store
from ofq.config.published import Comparison, Published, compare
from ofq.config.reference import Reference
from ofq.config.run import Grid, Run
from ofq.config.runtimes import Minutes, check_models, read
from ofq.config.schema import Recipe, Site, Study
from ofq.config.tuning import base_of
from ofq.console import printable
from ofq.errors import UserError, some
from ofq.redact import refuse_credentials
from ofq.values import NAME

_FOLDERS = ("results", "reports")
BUNDLE = "bundle.json"
"""File that marks an unpacked bundle, and lists its content."""

_MOST_TRAININGS = 100_000


class Workspace:
    """Definitions of a checkout under ``config/``; each file is read once.

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
        """Settings of the site: ``config/config.yaml``."""
        path = self.site_path
        if not path.exists():
            raise UserError(f"{path}: no such file; run this in a checkout, where config/ is")
        site = parse(Site, self._read(path), str(path))
        refuse_credentials(site.tracking_uri or "", f"{path}: key 'tracking_uri'")
        places = {key: expand_path(getattr(site, key), f"{path}: key '{key}'") for key in _FOLDERS}
        for key, place in places.items():
            _check_folder(self.root / place, f"{path}: key '{key}'")
        site = site.model_copy(update=places)
        for name in site.studies:
            if name not in self.study_names:
                hint = suggest(name, self.study_names)
                raise UserError(f"{path}: key 'studies': unknown study '{name}' ({hint})")
        return site

    @property
    def site_path(self) -> Path:
        """File of the site's settings."""
        return self.root / "config" / "config.yaml"

    @property
    def is_bundle(self) -> bool:
        """Return whether this is an unpacked bundle, which others made: nothing in it is run."""
        return (self.root / BUNDLE).exists()

    def refuse_bundle(self, task: str) -> None:
        """Refuse to run anything in an unpacked bundle.

        Args:
            task: The requested task, for the error.

        Raises:
            UserError: This is an unpacked bundle.
        """
        if self.is_bundle:
            raise UserError(
                f"{self.root.resolve()}: can't {task} in an unpacked bundle, which is for reading; "
                "do so in a checkout of the suite, at the commit that `ofq explain` names"
            )

    @property
    def results(self) -> Path:
        """Folder of the run folders and the embedded MLflow store."""
        return self.root / self.site.results

    @property
    def reports(self) -> Path:
        """Folder of the reports, one folder per study."""
        return self.root / self.site.reports

    @property
    def logs(self) -> Path:
        """Folder of the output of runs' jobs, as ``RUN.log``."""
        return self.root / "logs" / "train"

    @property
    def tracking_uri(self) -> str:
        """URI of MLflow's store: the site's, ``MLFLOW_TRACKING_URI``, or SQLite in the results."""
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
        """Return the config of a data set: of its file, or of the package.

        Args:
            name: Its name.
            source: The file and key that name it, for the error.

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

        Sources are the site's ``data``, the variable ``NAME_DIR``, and the data set's file, in this
        order; then those of the data set that it is a part of. Public files are looked for at the
        place of the data set's file and in :meth:`fetched`.

        Raises:
            UserError: None of them gives a place, or public files aren't there.
        """
        named = self._named_place(dataset)
        whole, download = self.download(dataset)
        given = named[0] if named else self.dataset(whole).place
        if not given and not download:
            raise UserError(
                f"{self.site_path}: key 'data.{dataset}' is missing: give the folder that has "
                f"{dataset}'s train/ and val/, or set {_variable(dataset)}"
            )
        source = self.data_source(dataset)
        places = [locate(expand_path(given, source), self.root)] if given else []
        if download is None:
            return places[0]
        if named is None:
            places.append(Place("folder", str(self.fetched(whole))))
        for place in places:
            if not download.missing(Path(place.at)):
                return place
        where = " or ".join(place.at for place in places)
        raise UserError(
            f"{f'{source}: ' if named else ''}data set '{dataset}': {some([*download.files])} "
            f"aren't all in {where}; {any_of(download.ways(whole, self.site_path))}"
        )

    def data_source(self, dataset: str) -> str:
        """Return the key or variable that gives a data set's place, for errors."""
        if named := self._named_place(dataset):
            return named[1]
        whole = self.dataset(dataset).part_of or dataset
        if not self.dataset(whole).place:
            return _variable(dataset)
        return f"{self.root / 'config' / 'datasets' / whole}.yaml: key 'place'"

    def download(self, dataset: str) -> tuple[str, Download | None]:
        """Return the public files of a data set.

        Returns:
            The data set whose files they are, itself or the one that it is a part of, and the
            files; None if it has none.

        Raises:
            UserError: It is a part of an unknown data set, or of one that is itself a part.
        """
        whole = self.dataset(dataset).part_of
        if whole is None:
            return dataset, self.dataset(dataset).download
        source = f"{self.root / 'config' / 'datasets' / dataset}.yaml: key 'part_of'"
        about = self.dataset(whole, source)
        if about.part_of:
            raise UserError(
                f"{source} is '{whole}', itself a part of '{about.part_of}'; name that one"
            )
        return whole, about.download

    def fetched(self, dataset: str) -> Path:
        """Return the folder that public files of a data set are downloaded to, and found in."""
        return self.root / "data" / dataset

    def _named_place(self, dataset: str) -> tuple[str, str] | None:
        """Return the place that site or environment give a data set, and which of them did so."""
        for name in filter(None, (dataset, self.dataset(dataset).part_of)):
            if given := self.site.data.get(name):
                return given, f"{self.site_path}: key 'data.{name}'"
            if given := os.environ.get(_variable(name)):
                return given, _variable(name)
        return None

    def own_file(self, name: str, source: str = "") -> Path:
        """Return a user's own file that a recipe or a study names, such as pretrained weights.

        Args:
            name: Its path as given there.
            source: Its origin, for the error.

        Raises:
            UserError: It names a variable that isn't set, or an unknown user.
        """
        return self.root / expand_path(name, source or f"the file '{name}'")

    @cached_property
    def study_names(self) -> list[str]:
        """Names of the studies whose file has a valid name."""
        return [path.stem for path in self.files("studies") if _problem_of(path.stem) is None]

    def faults(self) -> list[str]:
        """Return one line for each study that can't be used, for commands that list all of them."""
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
        """Methods of all files in ``config/methods``, by name, without invalid ones."""
        return self._methods[0]

    @cached_property
    def _methods(self) -> tuple[dict[str, Method], list[str]]:
        """Valid methods, and the mistakes in others, which matter only to studies that use them."""
        definitions: dict[str, dict[Path, Method]] = {}
        mistakes: list[str] = []
        for path in self.files("methods"):
            try:
                for name, method in self._methods_of(path).items():
                    definitions.setdefault(name, {})[path] = method
            except UserError as error:
                mistakes.append(str(error))
        for name, homes in definitions.items():
            first, *others = homes
            mistakes += [
                f"{path}: method '{name}' is already defined in {first}; rename one"
                for path in others
            ]
        single = {
            n: next(iter(homes.values())) for n, homes in definitions.items() if len(homes) == 1
        }
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
        """Return a study's config; keys that it leaves out come from the study that it ``extends``.

        Raises:
            UserError: There is no such study, or it or one that it extends is invalid.
        """
        if name not in self._studies:
            own, *bases = self.study_files(name)
            data = self._read(own)
            for path in bases:
                data = {**self._read(path), **data}
            self._studies[name] = parse(Study, data, str(self.study_path(name))).expanded()
        return self._studies[name]

    def methods_of(self, study: str) -> dict[str, Method]:
        """Return all known methods, and the variants that a study tries, by name.

        Raises:
            UserError: A tuned method lacks an option, or refuses a value.
        """
        source = str(self.study_path(study))
        tried = {
            name: variant.method(self.methods[variant.base], source)
            for name, variant in self.study(study).variants.items()
            if variant.base in self.methods
        }
        return {**self.methods, **tried}

    def study_files(self, name: str) -> list[Path]:
        """Return the file of a study, and those of the studies that it extends, nearest first.

        Raises:
            UserError: One is missing, or a study extends itself.
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
        """Return a recipe by its name."""
        return self._load(Recipe, "recipes", name, "recipe")

    def recipe_of(self, study: str) -> Recipe:
        """Return a study's recipe, with the study's own data set if it names one."""
        config = self.study(study)
        recipe = self.recipe(config.recipe)
        return recipe.model_copy(update={"dataset": config.dataset}) if config.dataset else recipe

    def published(self, dataset: str) -> Published | None:
        """Return the published recipe for a data set; None if ``config/published`` has none.

        Raises:
            UserError: Its file is wrong.
        """
        path = self.root / "config" / "published" / f"{dataset}.yaml"
        return parse(Published, self._read(path), str(path)) if path.exists() else None

    def compare(self, run: Run, devices: int | None = None) -> Comparison | None:
        """Compare a run with the published recipe; None if none was published for such a run.

        Args:
            run: The run.
            devices: Number of devices that it trains on; None for as many as its recipe asks for.

        Raises:
            UserError: The published recipe's file is wrong.
        """
        count = max(1, run.resources.gpu) if devices is None else devices
        return compare(run.config, count, self.published(run.config.dataset))

    def references(self, study: str) -> list[Reference]:
        """Return the reported results with which a study is compared, in the study's order.

        Raises:
            UserError: A file is wrong, about another data set, or about an unknown method.
        """
        source = f"{self.study_path(study)}: key 'references'"
        dataset = self.recipe_of(study).dataset
        methods, loaded = ["fp", *self.methods], []
        for name in self.study(study).references:
            loaded.append(self._load(Reference, "reference", name, "reference"))
            if loaded[-1].dataset != dataset:
                raise UserError(
                    f"{source}: '{name}' is about {loaded[-1].dataset}, but the study "
                    f"trains on {dataset}"
                )
            for value in loaded[-1].values:
                for method in (value.method, value.against or value.method):
                    if method not in methods and not self._methods[1]:
                        raise UserError(
                            f"{self.root / 'config' / 'reference' / name}.yaml: unknown method "
                            f"'{method}' ({suggest(method, methods)})"
                        )
        return loaded

    def claims(self, study: str) -> dict[str, Claim]:
        """Return the claims of the files that a study names, by name, in order.

        Raises:
            UserError: A file is wrong, names an unknown method, or two have a claim of one name.
        """
        claims: dict[str, Claim] = {}
        for name in self.study(study).claims:
            for key, claim in self._load(Claims, "claims", name, "file of claims").claims.items():
                path = self.root / "config" / "claims" / f"{name}.yaml"
                if key in claims:
                    raise UserError(f"{path}: claim '{key}' is in another file of the study too")
                self._check_claim(claim, f"{path}: claim '{key}'")
                claims[key] = claim
        return claims

    def _check_claim(self, claim: Claim, source: str) -> None:
        methods = list(self.methods)
        for key in ("test", "control"):
            pair = getattr(claim, key)
            for method in pair.methods if pair else ():
                if method not in methods and not self._methods[1]:
                    hint = suggest(method, methods)
                    raise UserError(f"{source}: key '{key}': unknown method '{method}' ({hint})")

    def files(self, kind: str) -> list[Path]:
        """Return the files of one kind under ``config/``, sorted by name, without hidden ones.

        Args:
            kind: ``studies``, ``methods``, ``recipes``, ``reference`` or ``claims``.

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
        """Names of the recipes that have a file."""
        return [path.stem for path in self.files("recipes")]

    @property
    def runtimes_path(self) -> Path:
        """File of measured time limits, which need not exist."""
        return self.root / "config" / "runtimes.yaml"

    @cached_property
    def runtimes(self) -> dict[str, Minutes]:
        """Measured time limits by recipe, model and stage, which replace the recipes'."""
        return read(self.runtimes_path, self.recipe_names)

    def study_path(self, name: str) -> Path:
        """Return the file that defines a study."""
        return self.root / "config" / "studies" / f"{name}.yaml"

    def recipe_path(self, name: str) -> Path:
        """Return the file that defines a recipe."""
        return self.root / "config" / "recipes" / f"{name}.yaml"

    def grid(self, name: str) -> Grid:
        """Return a study's cells; expanded on first use."""
        if name not in self._grids:
            study, path = self.study(name), self.study_path(name)
            self._require("recipes", study.recipe, "recipe", f"{path}: key 'recipe': ")
            for reference in study.references:
                self._require("reference", reference, "reference", f"{path}: key 'references': ")
            for claims in study.claims:
                self._require("claims", claims, "file of claims", f"{path}: key 'claims': ")
            recipe = self.recipe_of(name)
            self._check_methods(study)
            cells = len(study.models) * len(study.bits) * len(study.methods)
            if (count := cells * len(study.seeds)) > _MOST_TRAININGS:
                raise UserError(
                    f"{path}: {count:,} trainings (models x bits x methods x seeds); allowed: "
                    f"{_MOST_TRAININGS:,}; split the study"
                )
            minutes = self.runtimes.get(study.recipe, {})
            check_models(self.runtimes_path, minutes, study.recipe, recipe.models)
            home = path if study.dataset else self.recipe_path(study.recipe)
            dataset = self.dataset(recipe.dataset, f"{home}: key 'dataset'")
            parts = Parts(study, recipe, dataset, self.methods_of(name), minutes)
            self._grids[name] = expand(name, parts, str(path))
        return self._grids[name]

    def _check_methods(self, study: Study) -> None:
        """Report mistakes in method files, if a study lacks a method that may be in one of them."""
        methods, mistakes = self._methods
        if mistakes and not methods.keys() >= {base_of(name) for name in study.methods}:
            raise UserError("\n".join(mistakes))

    def find(self, run_id: str) -> tuple[Run, list[str]]:
        """Return a run by its id, and the studies that it belongs to.

        Studies whose files are wrong are skipped, so that a mistake in one never stops the runs of
        another.

        Raises:
            UserError: No study has this run.
        """
        match: Run | None = None
        homes: list[str] = []
        broken: list[str] = []
        for name in self.study_names:
            try:
                run = self.grid(name).runs().get(run_id)
            except UserError as error:
                broken.append(str(error))
                continue
            if run is not None:
                match, homes = run, [*homes, name]
        if match is None:
            self.refuse_elsewhere()
            name = printable(run_id)
            text = f"no study under config/ has a run '{name}'; `ofq runs STUDY` lists a study's"
            raise UserError("\n".join(dict.fromkeys([text, *broken])))
        return match, homes

    def uses(self, run: Run, studies: list[str]) -> dict[str, list[str]]:
        """Return the studies that a run belongs to, and the methods that it is a stage of."""
        cells = [cell for name in studies for cell in self.grid(name).cells]
        methods = [c.method for c in cells if any(run in last.chain() for last in c.runs)]
        return {"studies": studies, "methods": list(dict.fromkeys(methods))}

    def refuse_elsewhere(self) -> None:
        """Raise an error if this isn't a checkout, where nothing can be listed or known."""
        if not (self.root / "config" / "studies").is_dir():
            raise UserError(f"no config/studies in {self.root.resolve()}: run this in a checkout")

    def _require(
        self, kind: str, name: str, word: str, where: str = "", others: Sequence[str] = ()
    ) -> Path:
        """Return the file that defines something.

        Args:
            kind: The folder below ``config``.
            name: The file's name.
            word: The kind of definition, for the error.
            where: Beginning of the error.
            others: Names that are allowed without a file.
        """
        path = self.root / "config" / kind / f"{name}.yaml"
        if not NAME.fullmatch(name) or path not in self.files(kind):  # a path would lead out
            self.refuse_elsewhere()
            hint = suggest(name, sorted({*others, *(p.stem for p in self.files(kind))}))
            raise UserError(f"{where}unknown {word} '{printable(name)}' ({hint})")
        return path

    def _load(self, model: type[Model], kind: str, name: str, word: str) -> Model:
        path = self._require(kind, name, word)
        return parse(model, self._read(path), str(path))


def _problem_of(name: str) -> str | None:
    """Return why a name is invalid in commands, folders and targets, or None if it is valid."""
    if not NAME.fullmatch(name):
        return "allowed: letters, digits, '_', '-', '.' and '+', a letter or digit first"
    return "'fp' names the full-precision baseline" if name == "fp" else None


def _check_name(name: str, path: Path, word: str) -> None:
    if problem := _problem_of(name):
        raise UserError(f"{path}: '{name}' can't be the name of a {word}; {problem}")


def _variable(dataset: str) -> str:
    """Return the environment variable that gives a data set's place."""
    return re.sub(r"\W", "_", dataset.upper()) + "_DIR"


def _check_folder(place: Path, source: str) -> None:
    """Refuse a place in or at which a folder can't be made, as a file is there."""
    there = next((path for path in (place, *place.parents) if os.path.lexists(path)), place)
    if os.path.lexists(there) and not there.is_dir():
        raise UserError(f"{source} is '{place}', but {there} is no folder; give a folder")
