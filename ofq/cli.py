"""The ``ofq`` command; each subcommand is a few lines over the package."""

import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ofq import __version__
from ofq.errors import RunFailed, TryAgain, UserError
from ofq.interruption import Interrupted, StopRequest, deadline
from ofq.progress import summary
from ofq.study import Quantization, Workspace
from ofq.study.dataset import locate
from ofq.study.files import parse
from ofq.tracking.folder import State

if TYPE_CHECKING:
    from ofq.doctor import Diagnosis

_STARTED = time.monotonic()
_LOOK = 0.5  # seconds between two looks at a request
_LEVELS = {"ok": "green", "warning": "yellow", "problem": "bold red"}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Reproduce, ablate and extend [bold]Oscillation-free Quantization[/bold] for low-bit "
    "vision transformers.\n\nRun it in a checkout, where [cyan]config/[/cyan] defines studies. "
    "[cyan]snakemake --cores 2 STUDY[/cyan] runs a whole study; the commands here are its steps.",
    epilog="Examples:  [cyan]ofq status digits[/cyan]   [cyan]ofq train RUN[/cyan]   "
    "[cyan]ofq doctor RUN[/cyan]   [cyan]ofq report digits[/cyan]",
)
track = typer.Typer(no_args_is_help=True, help="Mirror run folders in MLflow.")
app.add_typer(track, name="track")

RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, as `ofq runs` lists it.")]
StudyName = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study: a file in config/studies, without .yaml.")
]

ModelName = Annotated[str, typer.Option(metavar="NAME", help="The timm model.")]
Bits = Annotated[str, typer.Option(metavar="W2A2", help="Bits of weights and activations.")]
Qkr = Annotated[bool, typer.Option("--qkr", help="With query-key reparameterization.")]
Quantizer = Annotated[str, typer.Option(help="The weight quantizer.")]


@app.command()
def studies() -> None:
    """List the studies under config/, with the size of their grids."""
    workspace = Workspace()
    table = Table("study", "cells", "runs", "title", box=None)
    for name in workspace.study_names:
        grid = workspace.grid(name)
        counts = (str(len(grid.cells)), str(len(grid.runs())))
        table.add_row(name, *counts, workspace.study(name).title)
    Console().print(table)


@app.command()
def recipe(study: StudyName) -> None:
    """List what a study's runs differ in from the published recipe, as its recipe asks for devices.

    Runs for which nothing was published, such as those on digits, are left out.
    """
    workspace = Workspace()
    for run in workspace.grid(study).runs().values():
        found = workspace.compare(run)
        if found is not None:
            lines = [f"differs: {difference}" for difference in found.differences]
            lines += [f"always: {deviation}" for deviation in found.deviations]
            print("\n  ".join([f"{run.id} ({found.title})", *lines]))


@app.command()
def runs(
    study: StudyName,
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
) -> None:
    """List a study's runs, parents first, and the state that each is in.

    Prints one id per line when the output isn't a terminal, so that it can be handed on:
    `ofq doctor $(ofq runs digits --state interrupted)`. `ofq status` sums them up by cells.
    """
    from ofq.status.look import Watch
    from ofq.status.table import STYLES

    console = Console()
    watch = Watch(Workspace(), study)
    if state is None and not console.is_terminal:
        print("\n".join(watch.runs))
        return
    states = {name: look.state for name, look in watch.look().items()}
    wanted = [name for name in states if state in (None, states[name])]
    if not console.is_terminal:
        print("".join(f"{name}\n" for name in wanted), end="")
        return
    table = Table("run", "state", box=None)
    for name in wanted:
        table.add_row(name, states[name], style=STYLES[states[name]])
    console.print(table)


@app.command()
def status(
    studies: Annotated[
        list[str] | None,
        typer.Argument(metavar="[STUDY]...", help="Studies; left out, the site's."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print it once, whole, and leave.")] = False,
) -> None:
    """Show how far studies are: what is done, running, interrupted, failed and waiting.

    One row per cell. It counts the cell's runs, all seeds and stages; a stage that several cells
    share is counted in one row. For running ones it shows how far they are together, the steps
    per second of one, and when the last of them ends. Below are the failed runs: why, where the
    log is, what to do.

    In a terminal this is live, until all is done or Ctrl-C; elsewhere it is a line per cell, once.
    """
    from ofq.status.lines import lines
    from ofq.status.look import Watch
    from ofq.status.table import Page, follow

    console = Console()
    workspace = Workspace()
    watches = [Watch(workspace, name) for name in studies or workspace.site.studies]
    if not console.is_terminal:
        for watch in watches:
            print("\n".join(lines(watch)))
    elif once:
        console.print(Page(watches, console).draw(fit=False))
    else:
        follow(Page(watches, console), StopRequest().listen())


@app.command()
def doctor(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs' ids, or paths of run folders.")
    ],
) -> None:
    """Check run folders, and say what to do about what is wrong; changes nothing.

    It reads all of a folder: config, lock, events, provenance, tables, final files and
    checkpoints by their SHA-256, the runs that this one builds on, and what a killed trainer left.
    A problem means that something is lost or in the way; a warning mends itself, or only deserves
    to be known. Each comes with what to do, as a command wherever there is one.

    Exits with 0 if all is sound, with 1 if there is a problem.
    """
    from ofq.doctor import examine

    workspace = Workspace()
    console = Console()
    diagnoses = [examine(workspace, name) for name in runs]
    for diagnosis in diagnoses:
        _show(diagnosis, console)
    if not all(diagnosis.sound for diagnosis in diagnoses):
        raise typer.Exit(1)


@app.command()
def plan(
    study: StudyName,
    gpus: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="GPUs to plan for; left out, this machine's."),
    ] = None,
    cores: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="CPU cores for runs without GPU; left out, this machine's."
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="First train each kind of run for some seconds here.")
    ] = False,
    write_runtime: Annotated[
        bool,
        typer.Option("--write-runtime", help="Write jobs' time limits to config/runtimes.yaml."),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="MINUTES", min=5, help="With --write-runtime: the most that a job may ask for."
        ),
    ] = None,
) -> None:
    """Say what a study will cost, before anything is submitted.

    Runs to do and done, what shared stages save, GPU-hours, and the time until all is done.
    Times are ranges: from finished runs, else from --measure (kept in the results folder), else
    assumed, which the last column says. On a cluster, measure on a node like those of the jobs:
    [cyan]srun --cpus-per-task=8 ofq plan STUDY --measure[/cyan]

    With --write-runtime the workflow asks for time by these estimates in place of the recipe's.
    That re-runs nothing. A run that takes longer than --limit goes on in further jobs.
    """
    from ofq.planning.limits import write
    from ofq.planning.plan import Machine, Planner
    from ofq.planning.show import show

    console = Console()
    workspace = Workspace()
    planner = Planner(workspace, study)
    if measure:
        from ofq.planning.calibration import measure as measure_runs

        with console.status("measuring"):
            measure_runs(workspace, planner.unmeasured(), console.print)
        planner = Planner(workspace, study)
    show(planner.plan(Machine.given(gpus, cores, planner.to_do())), console)
    if write_runtime:
        for line in write(workspace, planner, limit):
            console.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def train(
    run_id: RunId,
    tracked: Annotated[
        bool, typer.Option("--track/--no-track", help="Mirror the run in MLflow while it trains.")
    ] = True,
    time_limit: Annotated[
        float | None,
        typer.Option(
            metavar="MINUTES", min=0.01, help="When the job will be ended: save and leave before."
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="If another trainer writes this run, wait for it.")
    ] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the last checkpoints of the finished run.")
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Try once more what failed by its numbers.")
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="GPUs, or processes without CUDA; left out, the recipe's `gpu`.",
        ),
    ] = None,
) -> None:
    """Train one run, or resume it where it was interrupted.

    The runs that it builds on must be complete. One trainer writes a run at a time; another one
    leaves, or waits with --wait. As many GPUs as the recipe asks for are leased from those in
    CUDA_VISIBLE_DEVICES, or else the machine's: runs at the same time never share one. A signal
    (SIGTERM, SIGINT, SIGUSR1, SIGUSR2) or the time limit makes it save its state and leave.

    Exits with 0 when the run is complete; with 75 when it was interrupted, or another trainer has
    it: the same command goes on later; with 3 when it would fail again; with 2 for a mistake.
    """
    from ofq import jobs
    from ofq.attempt import Options, attempt, run_folder
    from ofq.tracking.mirroring import await_mirror, start_mirror

    if int(os.environ.get("RANK", "0")) > 0:  # started by torchrun or srun
        _assist(run_id, devices)
        return
    console = Console()
    workspace = Workspace()
    run, homes = workspace.find(run_id)
    if run_folder(workspace, run).complete():
        console.print(f"{run.id} is already complete", highlight=False, soft_wrap=True)
        return
    stop = StopRequest().listen()
    gpus = run.resources.gpu if devices is None else devices
    jobs.check(workspace, run, homes, gpus)
    options = Options(deadline(_STARTED, time_limit), wait, keep, again, gpus)
    mirror = None
    try:
        with attempt(workspace, run, console, stop, options) as this:
            if not jobs.begin(workspace, run, homes, this, console):
                return
            mirror = start_mirror(this.folder, run.id) if tracked else None
            jobs.train(workspace, run, this, console)
    finally:
        if mirror is not None:
            folder, uri = run_folder(workspace, run), workspace.tracking_uri
            await_mirror(mirror, folder, run.id, uri, console, options.deadline)


@app.command(hidden=True)
def assist(
    run_id: RunId,
    devices: Annotated[int, typer.Option(help="As of `ofq train`.")],
) -> None:
    """Be one of a run's further processes (`ofq train` starts them by itself)."""
    from ofq.helpers import end_with_first

    end_with_first()
    _assist(run_id, devices)


@app.command()
def save(run_id: RunId) -> None:
    """Ask a run that is being trained, here or on another host, for a checkpoint now."""
    from ofq.attempt import SAVE_REQUEST, run_folder

    workspace = Workspace()
    run, _ = workspace.find(run_id)
    folder = run_folder(workspace, run)
    request = folder.path / SAVE_REQUEST
    if folder.state() != "running":
        raise UserError(f"{run.id} isn't running, it is {folder.state()}")
    request.touch()
    console = Console()
    with console.status("waiting for the checkpoint"):
        while request.exists() and folder.state() == "running":
            time.sleep(_LOOK)
    if request.exists():
        request.unlink()
        raise UserError(f"{run.id} has ended in the meantime; it is {folder.state()}")
    console.print(f"saved {run.id}", highlight=False, soft_wrap=True)


@app.command()
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="A checkpoint as the authors' code saves it.")],
    out: Annotated[Path, typer.Option(help="Where to write the weights (.safetensors).")],
    model: ModelName,
    bits: Bits,
    qkr: Qkr = False,
    quantizer: Quantizer = "statsq",
    classes: Annotated[int, typer.Option(help="Number of classes.", min=1)] = 1000,
) -> None:
    """Turn one of the authors' released checkpoints into weights of this package.

    Strictly: every tensor has its place, or is named as dropped, with the reason.
    """
    from ofq.atomic import write_file
    from ofq.training.importing import import_released
    from ofq.training.weights import save_weights

    _check_weights_path(out, ".safetensors")
    imported = import_released(file, model, _quantization(bits, qkr, quantizer), classes)
    write_file(out, lambda path: save_weights(imported.model, path))
    console = Console()
    for reason, names in imported.reasons().items():
        text = f"dropped {len(names)} tensors like {names[0]}: {reason}"
        console.print(text, highlight=False, soft_wrap=True)
    console.print(f"wrote {out}", highlight=False, soft_wrap=True)


@app.command()
def export(
    run_id: RunId,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write it: .safetensors, packed, or .onnx; left out, packed, here, as "
            "the run's name + .packed.",
        ),
    ] = None,
) -> None:
    """Write a finished run's model with each quantized weight as integer codes.

    A file .safetensors has b bits for each code; `ofq.export.load_packed(FILE)` in Python gives
    the model back, with the same logits. A file .onnx has codes behind DequantizeLinear, and
    activations between QuantizeLinear and DequantizeLinear (docs/export.md).
    """
    from ofq.export import export_run
    from ofq.onnx_export import export_onnx

    workspace = Workspace()
    run, _ = workspace.find(run_id)
    path = out or Path(f"{Path(run.id).name}.packed.safetensors")
    _check_weights_path(path, ".safetensors", ".onnx")
    text = f"wrote {path}: "
    if path.suffix == ".onnx":
        text += f"{export_onnx(workspace, run, path):,} bytes"
    else:
        done = export_run(workspace, run, path)
        share = f"1/{done.full_precision / done.size:.2f} of the full-precision model's"
        text += f"{done.size:,} bytes, {share} {done.full_precision:,}"
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    weights: Annotated[Path, typer.Argument(help="Weights of a quantized model (.safetensors).")],
    model: ModelName,
    bits: Bits,
    data: Annotated[str, typer.Option(help="`digits`, or a data set (docs/data.md).")],
    qkr: Qkr = False,
    quantizer: Quantizer = "statsq",
    batch_size: Annotated[int, typer.Option(help="Images per batch.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Whose split of digits.")] = 0,
) -> None:
    """Evaluate weights: top-1 and top-5, each image counted once whatever the batch size."""
    from ofq.training import evaluation, models
    from ofq.training.images import Files
    from ofq.training.weights import load_weights

    console = Console()
    wanted = _quantization(bits, qkr, quantizer)
    if data == "digits":
        images = evaluation.digits(model, seed, batch_size)
    else:
        files = Files(locate(data, Path()))
        images = evaluation.image_files(files, model, batch_size=batch_size)
    quantized = models.quantized(models.build(model, images.classes), wanted)
    loaded = load_weights(quantized, weights)
    measures, _ = evaluation.evaluate(loaded, images, console, StopRequest())
    count = f"{measures['correct']} of {measures['images']} images right"
    console.print(f"{summary(measures)}  {count}", highlight=False, soft_wrap=True)


@app.command()
def report(study: StudyName) -> None:
    """Build a study's report from its run folders; trains nothing."""
    from ofq.report import build

    workspace = Workspace()
    page = build(workspace, study, workspace.reports / study)
    Console().print(f"report: {page}", highlight=False, soft_wrap=True)


@app.command("bundle")
def make_bundle(
    study: StudyName,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to write it; left out, as reports/STUDY.tar.xz."),
    ] = None,
) -> None:
    """Pack what a study's report is made from, and the report, into one file.

    It holds config, records and results, no weights. `ofq unbundle FILE` unpacks it anywhere.
    """
    from ofq.bundle import ENDING, bundle

    workspace = Workspace()
    path = out or workspace.reports / f"{study}{ENDING}"
    bundle(workspace, study, path)
    text = f"wrote {path}: {path.stat().st_size:,} bytes"
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


@app.command("unbundle")
def open_bundle(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `ofq bundle` has written.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A new folder; left out, the study's name, here."),
    ] = None,
) -> None:
    """Unpack a study's bundle into a folder, where `ofq report` makes the same report again."""
    from ofq.bundle import unbundle

    unpacked = unbundle(file, out)
    [study] = unpacked.site.studies
    again = f"cd {shlex.quote(str(unpacked.root))} && ofq report {study}"
    text = f"unpacked {study}; its report anew: {again}"
    Console().print(text, highlight=False, markup=False, soft_wrap=True)


@app.command()
def explain(
    study: StudyName,
    cell: Annotated[
        str, typer.Argument(metavar="CELL", help="BITS/METHOD, or MODEL/BITS/METHOD if several.")
    ],
) -> None:
    """Tell where a number of a study's table comes from: runs, commits, recipes, commands.

    For example `ofq explain digits W2A2/statsq+qkr+cga`, or `FP/fp` for full precision.
    """
    from ofq.report import explain as tell

    print(tell(Workspace(), study, cell))


@track.command()
def sync(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="STUDY|RUN", help="All run folders and reports if none."),
    ] = None,
    uri: Annotated[str | None, typer.Option(help="Another tracking URI than the site's.")] = None,
) -> None:
    """Mirror runs, and studies' reports, to a tracking URI.

    Doing it twice changes nothing, so this also moves everything to another server. Exits with 75
    if something remains.
    """
    from ofq.credentials import redact, redacted_output, refuse_credentials

    if uri is not None:
        refuse_credentials(uri, "--uri")
    workspace = Workspace()
    with redacted_output():
        from ofq.tracking.mirror import Mirror
        from ofq.tracking.syncing import find_items, sync_items

        items = find_items(workspace, names or [])
        mirror = Mirror(uri or workspace.tracking_uri, workspace.results)
        console = Console()
        remaining = sync_items(mirror, items, console)
        text = f"mirrored {len(items) - len(remaining)} of {len(items)} to {redact(mirror.uri)}"
        if remaining:
            left = " ".join(dict.fromkeys(item.name for item in remaining))
            text += f"; the rest, later: ofq track sync {left}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    if remaining:
        raise typer.Exit(TryAgain.exit_code)


@track.command()
def uri() -> None:
    """Print the tracking URI, without a password if it has one."""
    from ofq.credentials import redact

    print(redact(Workspace().tracking_uri))


@track.command()
def ui(port: Annotated[int, typer.Option(help="Port of this machine.")] = 5000) -> None:
    """Browse runs and curves in MLflow's pages."""
    from ofq.credentials import redact
    from ofq.tracking.store import open_store

    store = Workspace().tracking_uri
    if store.startswith("http"):
        print(f"the tracking server has the pages: {redact(store)}")
        return
    open_store(store)
    # in the environment, since everyone on the machine sees a command line
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": store}
    arguments = ["-m", "mlflow", "ui", "--port", str(port)]
    os.execve(sys.executable, [sys.executable, *arguments], environment)


@track.command()
def follow(run_id: RunId) -> None:
    """Mirror one run while another process trains it (`ofq train` starts this by itself)."""
    import logging

    from ofq.credentials import redacted_output
    from ofq.tracking import RunFolder, mirroring

    os.nice(10)  # training comes first
    workspace = Workspace()
    folder = RunFolder(workspace.results / "runs" / run_id)
    folder.description()  # a slip is said at once
    with redacted_output():
        logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr, force=True)
        mirroring.leave_with(folder)
        from ofq.tracking.mirror import Mirror

        mirror = Mirror(workspace.tracking_uri, workspace.results)
        if not mirroring.follow(mirror, folder):
            raise typer.Exit(TryAgain.exit_code)


def _show(diagnosis: "Diagnosis", console: Console) -> None:
    console.print(f"[bold]{escape(diagnosis.name)}[/]", highlight=False, soft_wrap=True)
    for finding in diagnosis.findings:
        text = f"  [{_LEVELS[finding.level]}]{finding.level:7}[/]  {escape(finding.text)}"
        console.print(text, highlight=False, soft_wrap=True)
        if finding.todo is not None:
            console.print(f"           → {escape(finding.todo)}", highlight=False, soft_wrap=True)


def _check_weights_path(out: Path, *endings: str) -> None:
    if out.suffix not in endings or not out.parent.is_dir():
        allowed = " or ".join(endings)
        raise UserError(f"--out {out}: expected a {allowed} file in a folder that exists")


def _quantization(bits: str, qkr: bool, quantizer: str) -> Quantization:
    values = {"bits": bits, "qkr": qkr, "weight_quantizer": quantizer}
    return parse(Quantization, values, "options")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ofq {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _assist(run_id: str, gpus: int | None) -> None:
    """Train along; what all processes end by, the first one says."""
    from ofq import jobs
    from ofq.attempt import run_folder

    workspace = Workspace()
    run, homes = workspace.find(run_id)
    if run_folder(workspace, run).complete():
        return
    stop = StopRequest().listen()
    gpus = run.resources.gpu if gpus is None else gpus
    jobs.check(workspace, run, homes, gpus)
    try:
        jobs.assist(workspace, run, gpus, stop)
    except (Interrupted, RunFailed) as told:
        raise SystemExit(told.exit_code) from None


def main() -> None:
    """Run the command line; what a person must know is one message, without a stack trace."""
    sys.path.insert(0, os.getcwd())  # modules of a user's own methods lie in the checkout
    try:
        app()
    except (UserError, RunFailed) as error:
        _fail(str(error), error.exit_code)
    except TryAgain as reason:
        Console(stderr=True).print(str(reason), highlight=False, markup=False, soft_wrap=True)
        raise SystemExit(reason.exit_code) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, a folder without permission
        _fail(f"{error.filename or 'system'}: {error.strerror or error}")


def _fail(message: str, code: int = UserError.exit_code) -> NoReturn:
    console = Console(stderr=True)
    console.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise SystemExit(code) from None
