"""Plans of a study whose runs have known times, against sums made by hand."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from ofq import hardware
from ofq.atomic import write_json
from ofq.config import Workspace
from ofq.config.run import describe
from ofq.config.stage import Resources
from ofq.errors import UserError
from ofq.monitor.assumptions import WORK, assumed_epoch
from ofq.monitor.devices import NAMES, named
from ofq.monitor.estimate import Estimator
from ofq.monitor.kind import Kind, kind_of, passes_of
from ofq.monitor.plan import limits
from ofq.monitor.plan.plan import Machine, Planner
from ofq.monitor.plan.samples import FILE
from ofq.monitor.plan.show import lines, show, summary
from ofq.monitor.span import Range
from ofq.runs.attempt import run_folder

from tests.support.own_process import run_ofq

CPU = "A processor"
SECONDS = {"fp": 100, "qat": 200, "cga": 50}
GPU_RECIPE = """
resources:
  fp: {gpu: 1}
  qat: {gpu: 2}
  cga: {gpu: 1}
"""


@pytest.fixture(autouse=True)
def this_machine(monkeypatch):
    """A machine of a known processor, without GPU."""
    monkeypatch.setattr(hardware, "processor", lambda: CPU)
    monkeypatch.setattr(hardware, "gpus", list)


def finish(workspace, run, seconds, device=CPU, cuda=None):
    """Make a run's folder look as if it had been trained."""
    folder = run_folder(workspace, run)
    folder.open(describe(run))
    attempt = {"devices": [device] * max(1, run.resources.gpu), "cuda": cuda}
    folder.write_json("provenance.json", {"attempts": [attempt]})
    (folder.path / "model.safetensors").touch()
    epochs = run.config.training.epochs
    write_json(folder.path / "result.json", {"id": run.id, "epochs": epochs, "seconds": seconds})


def runs_of_seed(workspace, seed):
    runs = workspace.grid("tiny").runs().values()
    return [run for run in runs if run.config.seed == seed]


def finish_seed(workspace, seed, factor=1.0, **how):
    for run in runs_of_seed(workspace, seed):
        finish(workspace, run, factor * SECONDS[run.config.stage], **how)


def with_seeds(checkout, *seeds):
    path = checkout / "config/studies/tiny.yaml"
    path.write_text(path.read_text().replace("seeds: [0, 1]", f"seeds: {list(seeds)}"))
    return Workspace(checkout)


def test_tiny_grid_by_hand(checkout):
    """Per seed: fp 100 s, two QAT of 200 s, one CGA of 50 s; three seeds done, one to do."""
    workspace = with_seeds(checkout, 0, 1, 2, 3)
    for seed in (0, 1, 2):
        finish_seed(workspace, seed)
    found = Planner(workspace, "tiny").plan(Machine(gpus=1, cores=2))
    assert (found.done, found.to_do) == (12, 4)
    # alone, a seed's cells train fp; fp, qat; fp, qat, cga: six runs of 750 s, not four of 550 s
    assert found.unshared == 24
    assert found.saved["core"].low == found.saved["core"].high == pytest.approx(4 * 200 / 3600)
    assert found.left["core"].low == found.left["core"].high == pytest.approx(550 / 3600)
    assert found.left["gpu"] == Range(0, 0)
    # two cores: fp, then both QAT at once, then CGA
    assert found.wall == found.chain == Range(350, 350)
    assert Planner(workspace, "tiny").plan(Machine(1, 1)).wall == Range(550, 550)
    rows = {(row.stage, row.bits): (row.done, row.to_do, row.each) for row in found.rows}
    assert rows == {
        ("fp", "FP"): (3, 1, Range(100, 100)),
        ("qat", "W2A2"): (6, 2, Range(200, 200)),
        ("cga", "W2A2"): (3, 1, Range(50, 50)),
    }
    assert {row.sources for row in found.rows} == {("3 runs",)}


def test_spread_of_finished_runs_is_the_range(checkout):
    workspace = with_seeds(checkout, 0, 1, 2, 3)
    for seed, factor in enumerate((0.9, 1.0, 1.3)):
        finish_seed(workspace, seed, factor)
    found = Planner(workspace, "tiny").plan(Machine(1, 8))
    assert found.wall.low == pytest.approx(0.9 * 350)
    assert found.wall.high == pytest.approx(1.3 * 350)


def test_single_run_gives_a_wider_range(checkout):
    workspace = Workspace(checkout)
    finish_seed(workspace, 0)
    fp = next(row for row in Planner(workspace, "tiny").plan(Machine(1, 8)).rows)
    assert fp.each.low < 100 < fp.each.high


def test_longer_training_takes_longer_by_its_epochs(checkout):
    workspace = Workspace(checkout)
    for seed in (0, 1):
        finish_seed(workspace, seed)
    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text().replace("fp: {epochs: 2", "fp: {epochs: 10"))
    planner = Planner(Workspace(checkout), "tiny")
    fp = next(run for run in planner.to_do() if run.config.stage == "fp")
    assert planner.estimate(fp).seconds == Range(500 / 1.2, 500 * 1.2)


def test_methods_without_a_measurement_go_by_similar_ones(checkout):
    workspace = Workspace(checkout)
    for run in runs_of_seed(workspace, 0):
        if run.config.parts() == ["lsq"]:
            finish(workspace, run, 200)
    planner = Planner(workspace, "tiny")
    sources = {
        (run.config.stage, *run.config.parts()): planner.estimate(run).source
        for run in planner.to_do()
    }
    assert sources["qat", "lsq"] == "1 run"
    assert sources["qat", "statsq", "qkr"] == sources["cga", "statsq", "qkr", "cga0.005"]
    assert sources["qat", "statsq", "qkr"] == "similar runs"
    assert sources["fp", "fp"] == "assumed: recipe's limit"


def test_plan_tells_step_times_over_lsq_s_where_measured(checkout):
    """QAT takes LSQ 200 s and others 1.5 times as long, except where other jobs were in the way."""
    workspace = with_seeds(checkout, 0, 1, 2, 3)
    assert not any(
        "LSQ" in line for line in summary(Planner(workspace, "tiny").plan(Machine(1, 8)))
    )
    for seed, busy in ((0, 1.0), (1, 3.0), (2, 1.0)):
        for run in runs_of_seed(workspace, seed):
            slower = 1.0 if run.config.parts() == ["lsq"] else 1.5 * busy
            finish(workspace, run, slower * SECONDS[run.config.stage])
    told = [
        line for line in summary(Planner(workspace, "tiny").plan(Machine(1, 8))) if "LSQ" in line
    ]
    assert told == [
        "time of a step of QAT over LSQ's, micro_deit_patch2_8 at W2A2: "
        "statsq+qkr 1.50 (1.50-3.00) (median of 3 runs and quartiles, recorded while they trained)"
    ]


def test_without_any_measurement_the_recipe_s_limit_is_the_upper_end(checkout):
    found = Planner(Workspace(checkout), "tiny").plan(Machine(1, 1))
    assert found.wall == Range(0, 8 * 30 * 60)
    assert "ofq plan tiny --measure" in list(summary(found))[-1]


def test_other_hardware_counts_only_where_this_one_was_not_measured(checkout):
    workspace = with_seeds(checkout, 0, 1, 2, 3)
    for seed in (0, 1, 2):
        finish_seed(workspace, seed, device="Another processor")
    assert Planner(workspace, "tiny").plan(Machine(1, 8)).devices == ("Another processor",)
    finish(workspace, runs_of_seed(workspace, 3)[0], 77)
    assert Planner(workspace, "tiny").plan(Machine(1, 8)).devices == (CPU,)


def test_interrupted_run_counts_for_what_is_left_of_it(checkout):
    workspace = with_seeds(checkout, 0, 1, 2, 3)
    for seed in (0, 1, 2):
        finish_seed(workspace, seed)
    folder = run_folder(workspace, runs_of_seed(workspace, 3)[0])
    folder.make()
    folder.write_json("progress.json", {"step": 21, "total": 28})
    assert Planner(workspace, "tiny").plan(Machine(1, 8)).wall == Range(275, 275)


def test_gpus_are_counted_by_what_each_run_asks_for(checkout):
    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text() + GPU_RECIPE)
    workspace = with_seeds(checkout, 0, 1, 2, 3)
    for seed in (0, 1, 2):
        finish_seed(workspace, seed, device="A GPU", cuda="13.0")
    planner = Planner(workspace, "tiny")
    found = planner.plan(Machine(gpus=4, cores=1))
    assert found.left["gpu"].high == pytest.approx((100 + 2 * 2 * 200 + 50) / 3600)
    assert found.wall == Range(350, 350)
    assert planner.plan(Machine(gpus=2, cores=1)).wall == Range(550, 550)
    with pytest.raises(UserError, match="--gpus 1: a run of this study asks for 2"):
        planner.plan(Machine(gpus=1, cores=1))
    assert Machine.given(None, None, planner.to_do()).gpus == 2


def test_cga_settings_and_seeds_make_no_kinds_of_their_own(checkout):
    """Else a sweep of boundary ranges would be measured again for each of them."""
    runs = Workspace(checkout).grid("tiny").runs().values()
    assert len({kind_of(run) for run in runs}) == 4
    before = {kind_of(run) for run in runs}
    path = checkout / "config/methods/known.yaml"
    path.write_text(path.read_text().replace("0.005", "0.01"))
    assert {kind_of(run) for run in Workspace(checkout).grid("tiny").runs().values()} == before


def imagenet_kind(**changes):
    """DeiT-S in bf16 at W2A2 with QKR, taught in bf16, on one GPU; with changes."""
    values = {
        "dataset": "imagenet", "model": "deit_small_patch16_224", "stage": "qat", "bits": "W2A2",
        "method": "statsq+qkr", "batch_size": 512, "taught": True, "gpus": 1,
        "precision": "bf16", "teacher": "bf16",
    }  # fmt: skip
    return Kind(**values | changes)


COMPILED = Resources(gpu=1, workers=256, compile=True)


def test_assumed_epoch_by_hand():
    """DeiT-S: 131 us a step on an H200, 1.7 times with QKR, a third more for the teacher."""
    found = assumed_epoch(imagenet_kind(), COMPILED, named("h100"))
    on_h200 = 131e-6 * ((1.7 + 1 / 3) * 1_281_167 + 1.7 * 0.5 * 50_000)
    middle = on_h200 * (4.8 / 3.35) ** 0.5  # the same peak, less bandwidth
    assert found.seconds.low == pytest.approx(middle / 1.5)
    assert found.seconds.high == pytest.approx(middle * 1.5)
    assert found.basis == "h100, bf16"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("model", WORK)
@pytest.mark.parametrize("workers", [1, 11, 256])
def test_named_device_is_known_to_a_factor_of_three(name, precision, model, workers):
    kind = imagenet_kind(model=model, precision=precision, teacher=precision)
    resources = Resources(gpu=1, workers=workers, compile=True)
    found = assumed_epoch(kind, resources, named(name)).seconds
    assert 1 <= found.high / found.low <= 3
    anywhere = assumed_epoch(kind, resources, None).seconds
    assert anywhere.low <= found.low < found.high <= anywhere.high


@pytest.fixture(scope="module")
def runs_on_gpus():
    """The runs of this package's own studies that ask for a GPU, of models with known costs."""
    workspace = Workspace(Path(__file__).parents[2])
    studies = [path.stem for path in (workspace.root / "config/studies").glob("*.yaml")]
    runs = [run for study in studies for run in workspace.grid(study).runs().values()]
    return [run for run in runs if run.resources.gpu and run.config.model in WORK]


@pytest.mark.parametrize("name", NAMES)
def test_runs_of_all_studies_are_known_to_a_factor_of_three_on_a_named_device(name, runs_on_gpus):
    estimator = Estimator([], named(name))
    found = [estimator.estimate(run).seconds for run in runs_on_gpus]
    assert len(found) > 100
    assert all(0 < seconds.low <= seconds.high <= 3 * seconds.low for seconds in found)


def test_no_assumed_training_is_faster_than_its_device_s_peak():
    kind = imagenet_kind(bits="FP", method="fp", taught=False, precision="fp32")
    found = assumed_epoch(kind, COMPILED, named("a100")).seconds
    assert found.low >= 6 * 4.6e9 * 1_281_167 / 19.5e12


@pytest.mark.parametrize(
    ("device", "model", "images_per_second"),
    [
        # docs/performance.md: 128 images in 8.0 ms
        ("h200", "deit_tiny_patch16_224", 128 / 8.0e-3),
        # timm's results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv
        ("rtx3090", "deit_tiny_patch16_224", 2290),
        ("rtx3090", "deit_small_patch16_224", 1051),
        ("rtx3090", "swin_tiny_patch4_window7_224", 649),
    ],
)
def test_measured_steps_are_within_the_assumed_range(device, model, images_per_second):
    kind = imagenet_kind(model=model, bits="FP", method="fp", taught=False)
    found = assumed_epoch(kind, COMPILED, named(device)).seconds
    assert found.low < 1_281_167 / images_per_second < found.high


def test_few_loading_processes_decide_a_fast_gpu_s_time():
    resources = Resources(gpu=1, workers=10, compile=True)
    found = assumed_epoch(imagenet_kind(), resources, named("h200"))
    assert found.basis == "loading images"
    assert found.seconds.low < 1_331_167 / 1440 < found.seconds.high
    faster = resources.model_copy(update={"loader": "fast"})
    assert assumed_epoch(imagenet_kind(), faster, named("h200")).seconds.high < found.seconds.high


def test_gpus_share_the_time_of_an_epoch():
    one = assumed_epoch(imagenet_kind(), COMPILED, named("a100")).seconds
    four = assumed_epoch(imagenet_kind(gpus=4), COMPILED, named("a100")).seconds
    assert four.high == pytest.approx(one.high / 4)


@pytest.mark.parametrize(
    ("kind", "resources"),
    [
        (imagenet_kind(model="micro_deit_patch2_8"), COMPILED),
        (imagenet_kind(dataset="digits"), COMPILED),
        (imagenet_kind(gpus=0), COMPILED),
        (imagenet_kind(), Resources(gpu=1)),  # not compiled
    ],
)
def test_nothing_is_assumed_of_other_runs(kind, resources):
    assert assumed_epoch(kind, resources, named("a100")) is None


def test_precision_makes_a_kind_of_its_own(checkout):
    recipe = checkout / "config/recipes/small.yaml"
    run = next(iter(Workspace(checkout).grid("tiny").runs().values()))
    assert kind_of(run).precision == "fp32"
    recipe.write_text(
        recipe.read_text().replace("fp: {epochs: 2", "fp: {precision: bf16, epochs: 2")
    )
    run = next(iter(Workspace(checkout).grid("tiny").runs().values()))
    assert (run.config.stage, kind_of(run).precision) == ("fp", "bf16")


@pytest.fixture
def imagenet_study(checkout):
    """A study of the package's own ImageNet recipe for a first look, in bf16 on one GPU."""
    recipes = Path(__file__).parents[2] / "config/recipes/imagenet_quick.yaml"
    (checkout / "config/recipes/imagenet_quick.yaml").write_text(recipes.read_text())
    (checkout / "config/studies/quick.yaml").write_text(
        "title: Quick\ndescription: Quick.\nrecipe: imagenet_quick\n"
        "models: [deit_small_distilled_patch16_224]\nbits: [W2A2]\n"
        "methods: [lsq, statsq+qkr+cga]\nseeds: [0]\n"
    )
    return checkout


def test_plan_says_which_device_it_assumes(imagenet_study):
    workspace = Workspace(imagenet_study)
    spanning = Planner(workspace, "quick").plan(Machine(4, 1))
    text = list(summary(spanning))[-1]
    assert text.startswith("assumed, not measured: any of v100, a100")
    assert "--device NAME" in text
    found = Planner(workspace, "quick", named("A100")).plan(Machine(4, 1))
    text = list(summary(found))[-1]
    # the full-precision baseline is evaluated in float32
    peaks = "312 TFLOP/s in bf16, 19.5 TFLOP/s in fp32"
    assert text.startswith(f"assumed, not measured: a100, at most {peaks}, 2 TB/s")
    assert found.left["gpu"].high / found.left["gpu"].low <= 3
    assert found.wall.high / found.wall.low <= 3
    assert spanning.wall.low < found.wall.low < found.wall.high < spanning.wall.high


def test_gpu_of_this_machine_is_assumed_where_none_is_named(imagenet_study, monkeypatch):
    monkeypatch.setattr(hardware, "gpus", lambda: ["NVIDIA A100-SXM4-80GB"])
    workspace = Workspace(imagenet_study)
    here = Planner(workspace, "quick").plan(Machine(4, 1))
    assert here.wall == Planner(workspace, "quick", named("a100")).plan(Machine(4, 1)).wall
    assert "a100" in here.assumption


def test_runs_on_another_gpu_don_t_count_for_a_named_one(checkout):
    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text() + GPU_RECIPE)
    workspace = Workspace(checkout)
    finish_seed(workspace, 0, device="NVIDIA H200", cuda="13.0")
    same, other = (Planner(workspace, "tiny", named(name)) for name in ("h200", "a100"))
    run = same.to_do()[0]
    assert same.estimate(run).source == "1 run"
    assert other.estimate(run).source == "assumed: recipe's limit"
    assert not other.warnings


def test_unknown_device_is_refused_and_an_unneeded_one_is_told(checkout):
    done = run_ofq(checkout, "plan", "tiny", "--device", "a10")
    assert done.returncode == 2
    assert "--device a10" in done.stderr
    assert "did you mean 'a100'? allowed: v100, a100" in done.stderr
    done = run_ofq(checkout, "plan", "tiny", "--device", "a100")
    assert done.returncode == 0
    assert "--device a100 changes nothing: no run of tiny asks for a GPU" in done.stdout
    done = run_ofq(checkout, "plan", "tiny", "--device", "a100", "--measure")
    assert "give one of them" in done.stderr


def test_runs_on_gpus_are_not_measured_where_there_is_none(checkout):
    from ofq.monitor.plan import calibration

    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text() + GPU_RECIPE)
    workspace = Workspace(checkout)
    with pytest.raises(UserError, match="this machine has none; measure on one that has"):
        calibration.measure(workspace, Planner(workspace, "tiny").unmeasured(), print)


@pytest.mark.slow
@pytest.mark.integration
def test_run_on_two_gpus_is_measured_on_one_with_half_its_batch(checkout, monkeypatch):
    """The processor stands in for the GPU."""
    from ofq.monitor.plan import calibration
    from ofq.training.distributed import choose

    recipe = checkout / "config/recipes/small.yaml"
    recipe.write_text(recipe.read_text() + GPU_RECIPE)
    workspace = Workspace(checkout)
    unmeasured = [run for run in Planner(workspace, "tiny").unmeasured() if run.resources.gpu == 2]
    monkeypatch.setattr(hardware, "gpus", lambda: ["NVIDIA H200"])
    monkeypatch.setattr(calibration, "_SECONDS", 0.1)
    monkeypatch.setattr(calibration, "_devices", lambda gpus: choose(0))
    leased, batches, share = [], [], calibration._share
    monkeypatch.setattr(calibration, "lease", lambda count, owner: leased.append(count))

    def shared(run):
        batches.append(share(run).training.batch_size)
        return share(run)

    monkeypatch.setattr(calibration, "_share", shared)
    lines = calibration.measure(workspace, unmeasured[:1], lambda text: None)
    assert (leased, batches) == ([1], [32])
    assert (lines[0].kind.gpus, lines[0].steps_per_epoch) == (2, 897 // 64)


def test_shown_in_80_columns_and_as_lines(checkout):
    workspace = with_seeds(checkout, 0, 1, 2, 3)
    for seed in (0, 1, 2):
        finish_seed(workspace, seed)
    found = Planner(workspace, "tiny").plan(Machine(1, 2))
    words = [line.split() for line in lines(found)]
    assert words[0][:3] == ["model", "stage", "bits"]
    assert words[1][:5] == ["micro_deit_patch2_8", "fp", "FP", "3", "1"]
    console = Console(width=80, force_terminal=True, file=io.StringIO())
    show(found, console)
    shown = console.file.getvalue()
    assert max(cell_len(Text.from_ansi(line).plain) for line in shown.splitlines()) <= 80
    assert "3 runs" in shown
    assert "…" not in shown
    text = "\n".join(summary(found))
    assert "tiny: 16 runs, 12 done, 4 to do" in text
    assert "shared stages save 8 of 24 runs, 0.22 core-hours" in text
    assert "wall-clock: 5.8 min with 2 cores" in text
    assert f"measured on: {CPU}" in text


def test_limits_are_written_read_and_change_no_run(checkout):
    workspace = with_seeds(checkout, 0, 1, 2, 3)
    for seed in (0, 1, 2):
        finish_seed(workspace, seed)
    before = list(workspace.grid("tiny").runs())
    told = list(limits.write(workspace, Planner(workspace, "tiny"), None))
    # 1.25 x 100, 200, 50 s in whole minutes, and 2 beside
    model = "micro_deit_patch2_8"
    assert told[1:] == [f"{model} fp: 5 min", f"{model} qat: 7 min", f"{model} cga: 4 min"]
    read = Workspace(checkout)
    assert read.runtimes == {"small": {model: {"fp": 5, "qat": 7, "cga": 4}}}
    runs = read.grid("tiny").runs()
    assert list(runs) == before
    assert {run.config.stage: run.resources.runtime for run in runs.values()} == {
        "fp": 5, "qat": 7, "cga": 4,
    }  # fmt: skip
    assert {run.resources.threads for run in runs.values()} == {1}


def test_written_limits_leave_others_alone_and_tell_of_several_jobs(checkout):
    path = checkout / "config/runtimes.yaml"
    path.write_text("small:\n  micro_deit_patch2_8: {released: 9}\n")
    workspace = with_seeds(checkout, 0, 1, 2, 3)
    for seed in (0, 1, 2):
        finish_seed(workspace, seed, factor=100)
    told = list(limits.write(workspace, Planner(workspace, "tiny"), 120))
    # QAT: 1.25 x 20,000 s = 417 min: in pieces of 118
    assert "micro_deit_patch2_8 qat: 419 min, in 4 jobs of 120 min" in told
    assert told[-1].startswith("give Snakemake --retries 3 or more")
    assert Workspace(checkout).runtimes["small"]["micro_deit_patch2_8"] == {
        "released": 9, "fp": 120, "qat": 120, "cga": 107,
    }  # fmt: skip


def test_nothing_measured_writes_nothing(checkout):
    workspace = Workspace(checkout)
    with pytest.raises(UserError, match="add --measure"):
        limits.write(workspace, Planner(workspace, "tiny"), None)
    assert not workspace.runtimes_path.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("smal: {}", ["unknown recipe 'smal'", "did you mean 'small'"]),
        ("small: {micro_deit_patch2_8: {qta: 5}}", ["qta", "'qat'"]),
        ("small: {micro_deit_patch2_8: {qat: 0}}", ["small.micro_deit_patch2_8.qat", "0"]),
        ("small: {micro: {qat: 5}}", ["'micro'", "micro_deit_patch2_8"]),
        ("- 5", ["mapping"]),
    ],
)
def test_mistakes_in_the_limits_are_named(checkout, text, words):
    (checkout / "config/runtimes.yaml").write_text(text)
    with pytest.raises(UserError) as told:
        Workspace(checkout).grid("tiny")
    assert "runtimes.yaml" in str(told.value)
    for word in words:
        assert word in str(told.value)


def test_damaged_measurement_is_named(checkout):
    path = checkout / "results" / FILE
    path.parent.mkdir()
    path.write_text('{"kind": 1}\n')
    with pytest.raises(UserError, match=rf"{FILE}:1: key 'kind"):
        Planner(Workspace(checkout), "tiny")


@pytest.mark.slow
@pytest.mark.integration
def test_measured_once_with_real_steps_and_used(checkout, monkeypatch):
    """Afterwards nothing is left to be assumed, and nothing to be measured."""
    from ofq.monitor.plan import calibration

    monkeypatch.setattr(calibration, "processor", lambda: CPU)
    monkeypatch.setattr("ofq.training.distributed.processor", lambda: CPU)
    monkeypatch.setattr(calibration, "_SECONDS", 0.1)
    workspace = Workspace(checkout)
    told = []
    calibration.measure(workspace, Planner(workspace, "tiny").unmeasured(), told.append)
    assert len(told) == 4
    found = [json.loads(line) for line in (workspace.results / FILE).read_text().splitlines()]
    assert {line["kind"]["stage"] for line in found} == {"fp", "qat", "cga"}
    assert all(line["steps_per_epoch"] == 897 // 64 for line in found)
    assert all(min(line["step_seconds"]) > 0 for line in found)
    planner = Planner(workspace, "tiny")
    assert planner.unmeasured() == []
    assert {source for row in planner.plan(Machine(1, 1)).rows for source in row.sources} == {
        "calibration"
    }
    calibration.measure(workspace, planner.to_do(), told.append)
    assert len(told) == 4
    fp = next(line for line in found if line["kind"]["stage"] == "fp")
    epochs = [s * 14 + fp["evaluation_seconds"] for s in fp["step_seconds"]]
    fixed = fp["startup_seconds"] + fp["evaluation_seconds"]
    run = planner.to_do()[0]
    estimate = planner.estimate(run).seconds
    assert estimate.low == pytest.approx((fixed + 2 * min(epochs)) / 1.3)
    assert estimate.high == pytest.approx((fixed + 2 * max(epochs)) * 1.3)


def test_plan_needs_no_torch(checkout):
    code = (
        "import sys; from ofq.monitor.plan.show import show; "
        "from ofq.monitor.plan.limits import write; "
        "assert not {'torch', 'timm', 'mlflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_command_line(checkout):
    done = run_ofq(checkout, "plan", "tiny", "--cores", "2", "--write-runtime")
    assert done.returncode == 2
    assert "tiny: 8 runs, 0 done, 8 to do" in done.stdout
    assert "add --measure" in done.stderr
    assert "\x1b" not in done.stdout


def test_noise_takes_an_evaluation_for_each_draw_and_one_without(checkout):
    method = "statsq+noise: {label: N, weight_quantizer: statsq, noise: {samples: %d}}\n"
    path, study = checkout / "config/methods/noise.yaml", checkout / "config/studies/tiny.yaml"
    study.write_text(study.read_text().replace("[lsq, statsq+qkr+cga]", "[statsq, statsq+noise]"))

    def noisy(draws):
        path.write_text(method % draws)
        runs = Workspace(checkout).grid("tiny").runs().values()
        return next(run for run in runs if run.config.stage == "noise")

    assert [passes_of(noisy(draws).config.payload()) for draws in (5, 20)] == [6, 21]
    assert kind_of(noisy(5)) == kind_of(noisy(20))
    assert passes_of(noisy(5).parent.config.payload()) == 2  # epochs
