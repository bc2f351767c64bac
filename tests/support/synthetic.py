"""Small workspaces whose run folders hold made-up numbers, written through RunFolder itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ofq.config import Run, Workspace
from ofq.config.run import quantization_of
from ofq.runs.folder import RunFolder
from ofq.runs.record import FINAL, facts_of, write_manifest

SUITE = Path(__file__).parents[2]

STUDY = {
    "title": "Made-up & tested",
    "description": "What the report makes of known numbers.",
    "recipe": "small",
    "models": ["micro"],
    "bits": ["W2A2", "W4A4"],
    "methods": ["lsq", "statsq", "statsq+qkr", "statsq+qkr+cga"],
    "seeds": [0, 1, 2],
    "figures": [
        "accuracy",
        "accuracy_against_bits",
        "accuracy_against_oscillation",
        "accuracy_against_flips",
        "frozen_share",
        "oscillation_over_training",
        "oscillation_by_role",
        "activation_oscillation",
        "latent_weights",
        "gradient_sign_changes",
        "joint_flips",
        "weight_paths",
        "scale_paths",
    ],
    "expectations": ["StatsQ is better than LSQ by <3.5> points."],
}

CGA = {"cga": {"boundary_range": 0.005}}
FACTORIAL = {
    f"{quantizer}{'+qkr' * qkr}{'+cga' * cga}": {
        "label": label + " + QKR" * qkr + " + CGA" * cga + " (OFQ)" * (best and qkr and cga),
        "weight_quantizer": quantizer,
        "qkr": qkr,
        **(CGA if cga else {}),
    }
    for quantizer, label, best in (("lsq", "LSQ", False), ("statsq", "StatsQ", True))
    for qkr in (False, True)
    for cga in (False, True)
}
METHODS = FACTORIAL | {
    name: {"label": f"BR {width}", "weight_quantizer": "statsq", "cga": {"boundary_range": width}}
    for name, width in (("wide", 0.01), ("wider", 0.1))
}

EPOCHS = 4
IMAGES = 900
STEPS = 28
DEPTH = 4
RECORDING = {"weights": 4, "sample": 16, "histograms": 3, "activations": 2}
PER_STEP = 20  # bins of histograms

Top1 = Callable[[Run], float]


def make_workspace(
    root: Path,
    dataset: str = "digits",
    recording: dict[str, int] = RECORDING,
    **study: object,
) -> Workspace:
    """A workspace with one study, ``small``; keywords replace parts of its config."""
    stage = {"epochs": EPOCHS, "batch_size": 32, "lr": 1e-3}
    recorded = {**stage, "probes": recording}
    stages = {"fp": stage, "qat": recorded, "cga": {**recorded, "epochs": 2}}
    if dataset == "toy_regression":
        del stages["fp"]
    config = {**STUDY, **study}
    recipe = {"dataset": dataset, "models": config["models"], "stages": stages}
    files = {
        "config": {"studies": ["small"]},
        "methods/ofq": METHODS,
        "recipes/small": recipe,
        "studies/small": config,
    }
    for name, data in files.items():
        path = root / "config" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data))
    return Workspace(root)


def make_shipped(root: Path, name: str, **changes: object) -> Workspace:
    """A workspace whose study ``small`` is one of the suite's own, with its methods."""
    shipped = Workspace(SUITE)
    study = shipped.study(name).model_dump(mode="json", exclude_defaults=True)
    keys = ("bits", "methods", "only", "figures", "factors", "contrasts")
    made = {key: study[key] for key in keys if key in study}
    workspace = make_workspace(root, **{**made, **changes})
    (root / "config/methods/ofq.yaml").unlink()
    for path in shipped.files("methods"):
        shutil.copy(path, root / "config/methods")
    return Workspace(workspace.root)


def default_top1(run: Run) -> float:
    """Better with more bits and techniques, and a little noise that seeds share."""
    config = run.config
    if config.bits is None:
        return of_images(97.0 + 0.1 * (config.seed % 30))
    traits = [len(str(quantizer(run))), has_qkr(run), config.stage == "cga"]
    rng = np.random.default_rng([config.seed, int(config.bits[1]), *traits])
    shared = np.random.default_rng(config.seed).normal(0, 0.6)
    value = 84.8 if config.bits == "W2A2" else 94.0
    value += 3.5 if quantizer(run) == "statsq" else 0.0
    value += 1.2 if has_qkr(run) else 0.0
    return of_images(min(100.0, float(value + shared + rng.normal(0, 0.3))))


def of_images(top1: float) -> float:
    """The nearest accuracy that a number of right images gives."""
    return 100 * round(IMAGES * top1 / 100) / IMAGES


def fill(workspace: Workspace, top1: Top1 = default_top1) -> None:
    """Write every run folder of the study."""
    for run in workspace.grid("small").runs().values():
        write_run(workspace, run, top1(run))


def right(run: Run) -> np.ndarray:
    """Which of the images a run is right about: as many as its accuracy says."""
    marks = np.arange(IMAGES) < round(IMAGES * default_top1(run) / 100)
    return np.random.default_rng([run.config.seed, len(run.id)]).permutation(marks)


def write_run(workspace: Workspace, run: Run, top1: float) -> RunFolder:
    """Write one finished run folder."""
    folder = RunFolder(workspace.results / "runs" / run.id)
    folder.open({"id": run.id, "config": run.config.payload(), "parent": None, "teacher": None})
    attempt = {"commit": "0123456789abcdef", "diff": "", "untracked": [], "devices": ["A CPU"]}
    folder.write_json("provenance.json", {"attempts": [attempt]})
    rng = np.random.default_rng([run.config.seed, len(run.id), len(str(run.config.bits))])
    if run.config.stage == "noise":
        return _write_draws(folder, run, top1)
    epochs = run.config.training.epochs
    folder.append("metrics", [_metrics(run, e, top1, rng) for e in range(epochs + 1)])
    if has_codes(run):
        folder.append("layers", [row for e in range(epochs + 1) for row in _layers(run, e, rng)])
    recording = run.config.training.probes
    if has_codes(run) and recording.weights:
        folder.append("trajectories", _trajectories(run, rng))
    if has_codes(run) and recording.sample:
        folder.append("sign_changes", [r for e in range(1, epochs + 1) for r in _signs(run, e)])
        folder.append("joint_flips", [r for e in range(1, epochs + 1) for r in _flips(run, e)])
    if has_codes(run) and recording.activations:
        rows = [row for e in range(1, epochs + 1) for row in _activations(run, e)]
        folder.append("activations", rows)
    if has_codes(run) and recording.histograms:
        folder.append("histograms", [r for e in {0, epochs // 2, epochs} for r in _counts(run, e)])
    result = {"id": run.id, "primary": "top1", "top1": top1, "loss": 0.5}
    if run.config.dataset == "toy_regression":
        result = {"id": run.id, "primary": "loss", "loss": 1 / top1}
    marks = right(run) if run.config.dataset == "digits" and top1 == default_top1(run) else None
    if marks is not None:
        result["correct"] = int(marks.sum())
    folder.finish(
        {
            **result,
            "images": IMAGES,
            "epochs": epochs,
            "steps": epochs * STEPS,
            "seconds": seconds(run),
        },
        lambda path: path.write_bytes(b"weights"),
        marks,
    )
    return folder


def seconds(run: Run) -> float:
    """What a training takes: longer with StatsQ and QKR, and with seed 1, beside other jobs."""
    longer = 1.2 ** (quantizer(run) == "statsq") * 1.25 ** has_qkr(run)
    return 9 * longer * (1 + (run.config.seed == 1))


def gain(run: Run, draw: int) -> float:
    """What a draw changes, in points: by −1 per seed for oscillating weights, −2 for others."""
    each = -1.0 if run.config.noise.weights == "oscillating" else -2.0
    return each * (run.config.seed + 1) + (0.25 if draw % 2 else -0.25)


def _write_draws(folder: RunFolder, run: Run, top1: float) -> RunFolder:
    draws = range(1, run.config.noise.samples + 1)
    noisy = [{"step": draw, "changed": 0.5, "top1": top1 + gain(run, draw)} for draw in draws]
    folder.append("noise", [{"step": 0, "changed": 0.0, "top1": top1}, *noisy])
    mean = float(np.mean([row["top1"] for row in noisy]))
    result = {"id": run.id, "primary": "top1", "top1": mean, "loss": 0.5, "images": IMAGES}
    folder.finish(
        {**result, "epochs": 0, "steps": 0, "seconds": 9}, lambda path: path.write_bytes(b"")
    )
    return folder


def vouch(folder: Path) -> None:
    """Give a finished run's folder the manifest of its files as they are now."""
    paths = [folder / name for name in FINAL if (folder / name).exists()]
    write_manifest(folder, {path.name: facts_of(path) for path in paths})


def rate(run: Run, epoch: int) -> float:
    """The oscillation rate that a run is given, without noise."""
    if run.config.stage == "cga":
        return 0.1
    share = epoch / run.config.training.epochs
    level = 2.0 if quantizer(run) == "lsq" else 3.0
    level *= 4 if run.config.bits == "W4A4" else 1
    return float(level * np.sin(0.9 * np.pi * share))


def _metrics(run: Run, epoch: int, top1: float, rng: np.random.Generator) -> dict[str, object]:
    row: dict[str, object] = {
        "epoch": epoch,
        "step": epoch * STEPS,
        "time": 0.0,
        "lr": 1e-3,
        "train_loss": None if epoch == 0 else 2.0 / epoch,
        "loss": (2.0 + rng.uniform()) / (epoch + 1),
        "top1": top1 - 20.0 / (epoch + 1),
    }
    if not has_codes(run):
        return row | {"oscillation_rate": None}
    noisy = rate(run, epoch) + 0.05 * rng.uniform()
    row |= {"oscillation_rate": noisy, "flips": noisy / 3, "in_boundary_range": 0.8}
    row |= {f"oscillation_rate/{role}": noisy for role in roles(run)}
    frozen = 99.0 if run.config.bits == "W2A2" else 60.0
    return row | ({"frozen": frozen} if run.config.stage == "cga" else {})


def quantizer(run: Run) -> str | None:
    """The name of a run's weight quantizer."""
    quantization = quantization_of(run.config)
    return quantization.weight_quantizer if quantization else None


def has_qkr(run: Run) -> bool:
    """Whether a run merges query and key."""
    quantization = quantization_of(run.config)
    return bool(quantization and quantization.qkr)


def has_codes(run: Run) -> bool:
    """Whether a run quantizes weights, so that they can oscillate."""
    return not str(run.config.bits).startswith(("None", "W32"))


def roles(run: Run) -> list[str]:
    """The roles of a run's weight matrices."""
    return [*(["qk"] if has_qkr(run) else ["q", "k"]), "v", "proj", "fc1", "fc2"]


def _layers(run: Run, epoch: int, rng: np.random.Generator) -> list[dict[str, object]]:
    return [
        {
            "epoch": epoch,
            "step": epoch * STEPS,
            "layer": f"blocks.{depth}.{f'mlp.{role}' if role.startswith('fc') else 'attn.proj'}",
            "role": role,
            "weights": 2304,
            "oscillation_rate": rate(run, epoch) * (0.5 + depth / DEPTH) + 0.3 * rng.uniform(),
            "flips": 0.5,
            "in_boundary_range": 0.8,
        }
        for depth in range(DEPTH)
        for role in roles(run)
    ]


def activation_rate(run: Run, epoch: int, depth: int, role: str) -> float:
    """The oscillation rate of an activation's codes, as made up; the longer its name, the more."""
    return rate(run, epoch) * (1 + depth / DEPTH) * len(role) / 10


def _activations(run: Run, epoch: int) -> list[dict[str, object]]:
    of_keys = ["qk"] if has_qkr(run) else ["q", "k"]
    inner = ["attention input", *of_keys, "v", "probabilities"]
    inner += ["proj input", "fc1 input", "fc2 input"]
    places = [(f"blocks.{depth}.attn", depth, role) for depth in range(DEPTH) for role in inner]
    outer = [("patch_embed.proj", 0, "first input"), ("head", 0, "last input")]
    return [
        {
            "epoch": epoch,
            "step": epoch * STEPS,
            "layer": layer,
            "role": role,
            "steps": STEPS,
            "positions": 256,
            "oscillation_rate": activation_rate(run, epoch, depth, role),
            "flips": 2.0,
        }
        for layer, depth, role in [*places, *outer]
    ]


def _trajectories(run: Run, rng: np.random.Generator) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    learned = quantizer(run) == "lsq"
    places = [roles(run)[i % len(roles(run))] for i in range(2)]
    for step in range(run.config.training.epochs * STEPS):
        swing = 0.06 * (-1) ** step if learned else 0.01 * rng.normal()
        for weight in range(2):
            latent = 0.5 + 0.3 * weight + swing - 0.3 * np.exp(-step / 20)
            scale = 1.0 + (swing / 2 if learned else 0.0)
            code = int(latent > 0.5)
            rows.append(
                {
                    "step": step,
                    "weight": weight,
                    "layer": "blocks.2",
                    "role": places[weight],
                    "latent": latent,
                    "scale": scale,
                    "quantized": scale * (0.25 + 0.5 * code),
                    "code": code,
                    "position": 4 * (latent - 0.5) / scale - 0.5,
                }
            )
    return rows


def share_of_changes(width: float | None) -> float:
    """The share of gradients that change sign, as made up: the more the nearer to a threshold."""
    return 0.5 if width is None else 0.9 - 3 * width


def _signs(run: Run, epoch: int) -> list[dict[str, object]]:
    return [
        {
            "epoch": epoch,
            "step": epoch * STEPS,
            "role": role,
            "boundary_range": width,
            "pairs": 1000,
            "changes": int(1000 * share_of_changes(width)),
        }
        for role in roles(run)
        if role != "qk"
        for width in (0.005, 0.01, 0.02, 0.05, 0.1, None)
    ]


def _flips(run: Run, epoch: int) -> list[dict[str, object]]:
    """Partners flip together twice as often as if independent, strangers don't."""
    return [
        {
            "epoch": epoch,
            "step": epoch * STEPS,
            "layer": f"blocks.{depth}",
            "steps": STEPS,
            "weights": 2304,
            "flips_q": 10 * epoch,
            "flips_k": 20 * epoch,
            "joint": 40,
            "expected": 20.0,
            "joint_strangers": 20,
            "expected_strangers": 20.0,
        }
        for depth in range(DEPTH)
    ]


def _counts(run: Run, epoch: int) -> list[dict[str, object]]:
    """Normal weights; towards the end the more of them lie on thresholds."""
    bits = int(str(run.config.bits)[1])
    edges = np.arange(2**bits * PER_STEP + 1) / PER_STEP - 2 ** (bits - 1) - 0.5
    counts = 5000 * np.diff(np.tanh((edges + 0.5) / 2 ** (bits - 2)))
    counts[PER_STEP::PER_STEP] += 40 * epoch
    return [
        {
            "epoch": epoch,
            "step": epoch * STEPS,
            "role": role,
            "weight_bits": bits,
            "counts": counts.astype(int).tolist(),
        }
        for role in roles(run)
    ]
