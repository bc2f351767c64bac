"""Raw records of a bundle for ``recompute.py``: config files and run folders, as they are."""

import json
from functools import cached_property

import numpy as np
import pandas as pd
import yaml

KEYS = ["model", "bits", "method", "seed"]
RESULTS = ["primary", "top1", "loss", "correct", "images", "epochs", "steps", "seconds"]
RATES = ["oscillation_rate", "flips", "in_boundary_range"]
DIGITS = 1797  # images, which each seed splits anew
SETTINGS = (  # of a run, of a method, and what either may leave out
    ("annealing", "cga", {"form": "band", "rule": "as_paper", "alpha": 0.9}),
    ("noise", "noise", {"weights": "oscillating"}),
)


def alike(recorded, asked, defaults):
    """Return whether a run's settings are those asked for, none included."""
    if recorded is None or asked is None:
        return recorded is asked
    return defaults | recorded == defaults | asked


class Study:
    """Study of an unpacked bundle, or of a checkout.

    Args:
        root: The folder of ``config`` and ``results``.
        name: The study's name.

    Attributes:
        config: Its config, with that of the studies that it extends.
        models, bits, methods, contrasts, factors, seeds: Parts of it.
        known: The methods' configs, by name.
        claims, references: Those that it names.
        cells: (model, bits, method) of all cells.
    """

    def __init__(self, root, name):
        self.root = root
        self.config = self._extended(name)
        self.models, self.bits, self.methods, self.seeds = (
            self.config[key] for key in ("models", "bits", "methods", "seeds")
        )
        self.contrasts = self.config.get("contrasts", [])
        self.factors = self.config.get("factors", {})
        self.recipe = self._yaml("recipes", self.config["recipe"])
        files = sorted((root / "config/methods").glob("*.yaml"))
        self.known = {k: v for path in files for k, v in self._yaml("methods", path.stem).items()}
        claims = [self._yaml("claims", name)["claims"] for name in self.config.get("claims", [])]
        self.claims = {key: claim for file in claims for key, claim in file.items()}
        self.references = [self._yaml("reference", n) for n in self.config.get("references", [])]
        has_fp = "fp" in self.recipe.get("stages", {}) or self.recipe.get("pretrained")
        full = self.models if has_fp and "checkpoints" not in self.config else []
        self.cells = [(model, "FP", "fp") for model in full]
        self.cells += [
            (model, bits, method)
            for model in self.models
            for bits in self.bits
            for method in self.methods
            if bits in self.bits_of(method)
        ]

    def _yaml(self, kind, name):
        return yaml.safe_load((self.root / f"config/{kind}/{name}.yaml").read_text("utf-8"))

    def _extended(self, name):
        own = self._yaml("studies", name)
        return (self._extended(own["extends"]) if "extends" in own else {}) | own

    def bits_of(self, method):
        """Return the bits at which a method is tried; all of the study's for None."""
        if method not in (None, *self.methods):
            return []
        only = self.config.get("only", {}).get(method, self.bits)
        return [bits for bits in self.bits if bits in only]

    def label(self, method):
        """Return the name of a method that tables print."""
        return "Full precision" if method == "fp" else self.known[method]["label"]

    @cached_property
    def finished(self):
        """Folders of the finished runs, their ``run.json`` and ``result.json``, by id."""
        found = {}
        for path in self.root.glob("results/runs/*/*/*/result.json"):
            record = json.loads((path.parent / "run.json").read_text())
            found[record["id"]] = (path.parent, record, json.loads(path.read_text()))
        return found

    def chain(self, run):
        """Return the ids of the runs that a run builds on, the first stage first."""
        record = self.finished[run][1]
        parent = record.get("parent") or self._by_digest(record)
        return [*(self.chain(parent) if parent else []), run]

    def _by_digest(self, record):
        """Return the parent's id, given the end of it in a run's config alone."""
        end = record["config"].get("parent")
        return next((run for run in self.finished if end and run.endswith(f"-{end[:8]}")), None)

    def _is(self, config, bits, method):
        """Return whether a run's config is that of a cell's last stage."""
        if method == "fp":
            return config["stage"] == "fp"
        asked, quantized = self.known[method], config.get("quantization") or {}
        last = next((stage for stage in ("noise", "cga") if stage in asked), "qat")
        if "checkpoints" in self.config:
            return config["stage"] == "released" and quantized["bits"] == bits
        return (
            config["stage"] == last
            and quantized["bits"] == bits
            and quantized["weight_quantizer"] == asked["weight_quantizer"]
            and quantized.get("qkr", False) == asked.get("qkr", False)
            and quantized.get("options", {}) == asked.get("options", {})
            and all(
                alike(config.get(recorded), asked.get(key), defaults)
                for recorded, key, defaults in SETTINGS
            )
        )

    def _trains_as(self, run, method):
        """Return whether the QAT run of a chain has a method's rate of scales and its training."""
        asked, qat = self.known.get(method, {}), self.stage(run, "qat")
        if qat is None:
            return True
        config = self.finished[qat][1]["config"]
        training = self.recipe["stages"]["qat"] | asked.get("training", {}).get("qat", {})
        plain = {k: v for k, v in training.items() if not isinstance(v, dict | list)}
        one, other = (c.get("techniques") or [c.get("stabilizer")] for c in (config, asked))
        if one != other:
            return False
        return config.get("scale_lr", 1) == asked.get("scale_lr", 1) and all(
            config["training"].get(key, value) == value for key, value in plain.items()
        )

    def stage(self, run, stage):
        """Return the run of a chain that is of a stage; None without one."""
        links = [r for r in self.chain(run) if self.finished[r][1]["config"]["stage"] == stage]
        return links[0] if links else None

    def _run(self, model, bits, method, seed):
        """Return a cell's run of a seed, found by what its config says; None if there is none."""
        found = [
            run
            for run, (_, record, _) in self.finished.items()
            if (record["config"]["model"], record["config"]["seed"]) == (model, seed)
            and self._is(record["config"], bits, method)
            and self._trains_as(run, method)
        ]
        if len(found) > 1:
            raise ValueError(f"{model} {bits} {method}, seed {seed}: runs {', '.join(found)} fit")
        return found[0] if found else None

    @cached_property
    def runs(self):
        """One row per cell and seed that has finished: results, chain, oscillation, sizes."""
        places = [(*cell, seed) for cell in self.cells for seed in self.seeds]
        runs = {place: run for place in places if (run := self._run(*place))}
        return pd.DataFrame([self._row(place, run) for place, run in runs.items()])

    def _row(self, place, run):
        folder, _, result = self.finished[run]
        row = dict(zip(KEYS, place, strict=True)) | {"label": self.label(place[2]), "run": run}
        row |= {name: result.get(name, np.nan) for name in RESULTS}
        row |= {"chain": " > ".join(self.chain(run))}
        row |= {f"{rate}_{moment}": np.nan for rate in RATES for moment in ("mid", "end")}
        epochs = self.curve(run, "metrics") if place[2] != "fp" else pd.DataFrame()
        if len(epochs):
            qat = epochs.loc[epochs["stage"] == "qat", "epoch"]
            middle = epochs[epochs["epoch"] == (qat.max() + 1) // 2].iloc[0]
            for moment, at in (("mid", middle), ("end", epochs.iloc[-1])):
                row |= {f"{rate}_{moment}": at.get(rate) for rate in RATES}
        packed = folder / "packed.json"
        return row | (json.loads(packed.read_text()) if packed.exists() else {})

    def curve(self, run, table):
        """Return a table of QAT, then CGA without its epoch 0, which repeats QAT's end."""
        pieces, before = [], 0
        for stage in ("qat", "cga"):
            link = self.stage(run, stage)
            path = self.finished[link][0] / f"{table}.parquet" if link else None
            if path and path.exists():
                rows = pd.read_parquet(path).assign(stage=stage)
                rows = rows[rows["epoch"] > 0] if stage == "cga" else rows
                pieces.append(rows.assign(epoch=rows["epoch"] + before))
            before += self.finished[link][2]["epochs"] if link else 0
        return pd.concat(pieces) if pieces else pd.DataFrame()

    @property
    def primary(self):
        """Column of the primary measure: ``top1`` or ``loss``."""
        return self.runs["primary"].iloc[0]

    @property
    def resplit(self):
        """Evaluation images over training images where seeds split one set, else 0."""
        name, images = self.recipe["dataset"], self.runs["images"].iloc[0]
        if (self.root / f"config/datasets/{name}.yaml").exists():
            return self._yaml("datasets", name).get("resplit") or 0.0
        return images / (DIGITS - images) if name == "digits" else 0.0

    def cell(self, *place):
        """Return the runs of a cell."""
        return self.runs[(self.runs[KEYS[:3]] == list(place)).all(axis=1)]

    def table(self, model, bits, measure):
        """Return a measure at some bits as seeds by methods, without empty rows and columns."""
        columns = {m: self.cell(model, bits, m).set_index("seed")[measure] for m in self.methods}
        return pd.DataFrame(columns).astype(float).dropna(how="all").dropna(how="all", axis=1)

    def qat(self, method):
        """Return what the QAT runs of a method are made by, as text: all but later stages."""
        later = ("label", "cga", "noise")
        made_by = {k: v for k, v in self.known[method].items() if v and k not in later}
        return json.dumps(made_by, sort_keys=True)

    def quantity(self, measure, *place):
        """Return a claim's quantity of a cell by seed."""
        cell = self.cell(*place).set_index("seed")
        if measure == "noise_gain":
            return self.draws(place).groupby("seed")["gain"].mean()
        if measure == "co_flips":
            tables = {seed: self.curve(run, "joint_flips") for seed, run in cell["run"].items()}
            sums = {s: t[["joint", "expected"]].sum() for s, t in tables.items() if len(t)}
            shares = {s: t["joint"] / t["expected"] for s, t in sums.items() if t["expected"] > 0}
            return pd.Series(shares, dtype=float)
        return cell[measure].astype(float)

    def draws(self, place=None):
        """Return every draw of injected noise of the study, or of one cell, beside none."""
        tables = []
        for run in (self.runs if place is None else self.cell(*place)).to_dict("records"):
            path = self.finished[run["run"]][0] / "noise.parquet"
            if path.exists():
                rows = pd.read_parquet(path)[["step", "changed", "top1"]].sort_values("step")
                plain = rows["top1"].iloc[0]
                rows = rows.iloc[1:].assign(top1_without=plain, gain=rows["top1"] - plain)
                tables.append(rows.assign(**{key: run[key] for key in KEYS}))
        return pd.concat(tables) if tables else pd.DataFrame(columns=[*KEYS, "gain"])

    @cached_property
    def times(self):
        """Seconds per epoch of each finished QAT run, its device, techniques and other settings."""
        rows = {}
        for run, (folder, record, result) in self.finished.items():
            config = record["config"]
            last = json.loads((folder / "provenance.json").read_text())["attempts"][-1]
            if config["stage"] != "qat" or not last.get("devices") or not result["seconds"]:
                continue
            quantization, training = config["quantization"], config["training"]
            held = config.get("techniques") or [config.get("stabilizer")]
            technique = [quantization["weight_quantizer"], quantization.get("qkr") or None]
            setting = [
                config["dataset"], config["model"], quantization["bits"], training["batch_size"],
                training.get("distillation", False), training.get("precision", "fp32"),
                training.get("teacher", {}).get("precision", "fp32"),
                len(last["devices"]) if last.get("cuda") else 0,
            ]  # fmt: skip
            rows[run] = {
                "epoch": result["seconds"] / training["epochs"],
                "device": last["devices"][0],
                "technique": json.dumps([*technique, *(t["form"] for t in held if t)]),
                "setting": json.dumps(setting),
            }
        columns = ["epoch", "device", "technique", "setting"]
        return pd.DataFrame.from_dict(rows, "index", columns=columns)

    def cost(self, *place):
        """Return a cell's seconds per epoch of QAT; over LSQ's, with quartiles; and its runs."""
        for run in self.cell(*place)["run"]:
            link = self.stage(run, "qat")
            if link not in self.times.index:
                continue
            one = self.times.loc[link]
            alike = self.times[self.times["setting"] == one["setting"]]
            lsq = alike[alike["technique"] == '["lsq", null]']
            mine = alike[alike["technique"] == one["technique"]]
            devices = mine.loc[mine["device"].isin(lsq["device"]), "device"].value_counts()
            if len(devices):
                device = min(devices.index[devices == devices.max()])
                mine, lsq = (t.loc[t["device"] == device, "epoch"] for t in (mine, lsq))
                quartiles = mine.quantile([0.5, 0.25, 0.75]) / lsq.median()
                return mine.median(), *quartiles, len(mine)
        return (*[np.nan] * 4, 0)

    def epochs(self, run):
        """Return the epochs that a run's chain trained quantized."""
        links = (self.stage(run, stage) for stage in ("qat", "cga"))
        return sum(self.finished[link][2]["epochs"] for link in links if link)

    def right(self, run):
        """Return which images a run is right about; None if that isn't recorded."""
        path = self.finished[run][0] / "correct.npy"
        bits = np.load(path) if path.exists() else None
        count = int(self.finished[run][2]["images"])
        return None if bits is None else np.unpackbits(bits, count=count).astype(bool)
