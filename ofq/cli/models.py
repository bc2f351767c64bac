"""Commands on model files: export, evaluation and import."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ofq.cli.common import RunId, given_path, say
from ofq.config import Quantization, Workspace
from ofq.config.datasets import locate
from ofq.config.files import parse
from ofq.config.places import expand_path
from ofq.errors import UserError
from ofq.runs.progress import summary
from ofq.starting import started
from ofq.stopping import StopRequest

_PANEL = "Models"
app = typer.Typer()

ModelName = Annotated[str, typer.Option(metavar="NAME", help="The timm model.")]
Bits = Annotated[str, typer.Option(metavar="W2A2", help="Bits of weights and activations.")]
Qkr = Annotated[bool, typer.Option("--qkr", help="With query-key reparameterization.")]
Quantizer = Annotated[str, typer.Option(help="The weight quantizer.")]


@app.command(rich_help_panel=_PANEL)
def export(
    run_id: RunId,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="File to write: packed (.safetensors) or .onnx. Default: packed, in the current "
            "folder, under the run's name + .packed.",
        ),
    ] = None,
) -> None:
    """Write a finished run's model with each quantized weight as integer codes.

    A .safetensors file has b bits per code; `ofq.load_packed(FILE)` in Python loads the
    model, with the same logits. A .onnx file has codes before DequantizeLinear, and activations
    between QuantizeLinear and DequantizeLinear (docs/export.md).
    """
    from ofq.runs.export import export_onnx_run, export_run

    workspace = Workspace()
    run, _ = workspace.find(run_id)
    path = given_path(out or Path(f"{Path(run.id).name}.packed.safetensors"), "--out")
    _check_weights_path(path, ".safetensors", ".onnx")
    _refuse_foreign(path, "ofq")
    text = f"wrote {path}: "
    if path.suffix == ".onnx":
        text += f"{export_onnx_run(workspace, run, path):,} bytes"
    else:
        exported = export_run(workspace, run, path)
        share = f"1/{exported.full_precision / exported.size:.2f} of the full-precision model's"
        text += f"{exported.size:,} bytes, {share} {exported.full_precision:,}"
    say(text)


@app.command(rich_help_panel=_PANEL, name="eval")
def evaluate(
    weights: Annotated[Path, typer.Argument(help="Weights of a quantized model (.safetensors).")],
    *,
    model: ModelName,
    bits: Bits,
    data: Annotated[str, typer.Option(help="`digits`, or a data set (docs/data.md).")],
    qkr: Qkr = False,
    quantizer: Quantizer = "statsq",
    batch_size: Annotated[int, typer.Option(help="Images per batch.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Seed of digits' split.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Evaluate weights: top-1 and top-5 accuracy, on each image exactly once."""
    from ofq.training import evaluation, models
    from ofq.training.data import source as packaged
    from ofq.training.data.images import ImageSource
    from ofq.training.data.readers import describe
    from ofq.training.weights import load_weights, recorded_facts

    console = Console()
    wanted = _quantization(bits, qkr, quantizer)
    dataset = "digits" if data == "digits" else None
    models.check(model, [("options", wanted)], "--model", dataset=dataset)
    if data == "digits":
        digits = packaged.load("digits", model, seed)
        images = evaluation.in_memory(digits, batch_size)
        facts = packaged.describe(data, digits)
    else:
        files = ImageSource(locate(expand_path(data, "--data"), Path()))
        images = evaluation.image_files(files, model, batch_size=batch_size)
        facts = describe(data, files.place, "val")
    recorded = recorded_facts(weights) if weights.is_file() else None
    difference = facts.difference(recorded, images=False) if recorded else None
    if difference:
        raise UserError(
            f"{data}: other classes than those that {weights} was trained on: {difference}"
        )
    quantized = models.quantized(models.build(model, images.classes), wanted)
    network = load_weights(quantized, given_path(weights, "WEIGHTS"))
    started()
    measures = evaluation.evaluate(network, images, console, StopRequest()).measures
    count = f"{measures['correct']} of {measures['images']} images right"
    say(f"{summary(measures)}  {count}")


@app.command(rich_help_panel=_PANEL)
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A checkpoint saved by the authors' code.")],
    out: Annotated[Path, typer.Option(help="Where to write the weights (.safetensors).")],
    *,
    model: ModelName,
    bits: Bits,
    qkr: Qkr = False,
    quantizer: Quantizer = "statsq",
    classes: Annotated[int, typer.Option(help="Number of classes.", min=1)] = 1000,
) -> None:
    """Convert one of OFQ's released checkpoints into weights of this package.

    The conversion is strict: every tensor is used, or reported as dropped, with the reason.
    """
    from ofq.atomic import write_file
    from ofq.training import models
    from ofq.training.importing import import_released
    from ofq.training.weights import save_weights

    file, out = given_path(file, "FILE"), given_path(out, "--out")
    _check_weights_path(out, ".safetensors")
    _refuse_foreign(out, "ofq.quantized")
    wanted = _quantization(bits, qkr, quantizer)
    models.check(model, [("options", wanted)], "--model")
    imported = import_released(file, model, wanted, classes, say)
    write_file(out, lambda path: save_weights(imported.model, path))
    for reason, names in imported.reasons().items():
        say(f"dropped {len(names)} tensors like {names[0]}: {reason}")
    say(f"wrote {out}")


def _check_weights_path(out: Path, *endings: str) -> None:
    if out.suffix not in endings or not out.parent.is_dir():
        allowed = " or ".join(endings)
        raise UserError(f"--out {out}: expected a {allowed} file in a folder that exists")


def _refuse_foreign(out: Path, key: str) -> None:
    """Refuse to replace a file that another command wrote, by a key in its metadata.

    Raises:
        UserError: There is such a file, such as the weights of a run.
    """
    if not os.path.lexists(out):
        return
    if (out.parent / "run.json").exists() or not _is_own(out, key):
        raise UserError(
            f"--out {out}: is there already, and isn't what this command writes; give another file"
        )


def _is_own(path: Path, key: str) -> bool:
    from safetensors import SafetensorError, safe_open

    if path.suffix == ".onnx":
        return path.is_file() and b"weight_quantizer" in path.read_bytes()
    try:
        with safe_open(path, "pt") as file:
            return key in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _quantization(bits: str, qkr: bool, quantizer: str) -> Quantization:
    values = {"bits": bits, "qkr": qkr, "weight_quantizer": quantizer}
    return parse(Quantization, values, "options")
