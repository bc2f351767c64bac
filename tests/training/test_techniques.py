"""Every built-in technique trains alike however its training is interrupted, split or spread."""

import io
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import ofq
from ofq.config import Training
from ofq.quantization import make_technique, set_gradient_batch
from ofq.quantization.techniques.base import techniques
from ofq.stopping import Interrupted, StopRequest
from ofq.training import distributed
from ofq.training.checkpoint import NoCheckpoints
from ofq.training.data.source import Data
from ofq.training.distributed import SINGLE_PROCESS, ProcessGroup
from ofq.training.models import build
from ofq.training.objective import Classification
from ofq.training.trainer import Session, Trainer

from tests.support.own_process import FORKSERVER
from tests.support.servers import free_port

pytestmark = pytest.mark.usefixtures("one_thread")

# a batch norm's statistics depend on how a batch is split, so its re-estimation isn't among them
NAMES = sorted(
    name
    for name, made in techniques.items()
    if made.__module__.startswith("ofq.") and name != "bn_reestimation"
)
OPTIONS = {
    "clip_penalty": {"strength": 0.1},
    "bin_regularization": {"strength": 1.0, "start": 0.2},
    "dampening": {"strength": 0.1},
    "transition_rate": {"target": 0.05, "adaptation": 0.1, "momentum": 0.5},
    "weight_average": {"decay": 0.7},
}
"""Options of the techniques that need some, or otherwise do too little in a few steps."""

STEPS, BATCH = 6, 8
# SGD, so that another order of sums changes last bits only, and activations in full precision
SETTINGS = {"epochs": 2, "batch_size": BATCH, "optimizer": "sgd", "lr": 0.05, "min_lr": 0.01}


def data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(STEPS * BATCH // 2, 1, 8, 8, generator=generator)
    labels = torch.arange(len(images)) % 10
    return Data(images, labels, images[:4], labels[:4], classes=10, seed=0)


class Memory(NoCheckpoints):
    """Keeps the newest state as the bytes of its file."""

    kept = None

    def save(self, step, state):
        file = io.BytesIO()
        torch.save(state, file)
        self.kept = file.getvalue()

    def load(self):
        return self.kept and torch.load(io.BytesIO(self.kept), weights_only=True)


def trainer_of(name, *, checkpoints=None, group=SINGLE_PROCESS, passes=1, stop=None, **settings):
    """A training of six steps under one technique."""
    torch.manual_seed(0)
    images = data()
    # PACT's clipping values are those of activations; at 8 bits their codes hardly depend on sums
    bits, activations = (8, "pact") if name == "clip_penalty" else (32, "lsq")
    model = build("micro_deit_patch2_8", 10)
    model = ofq.quantize(model, 2, bits, "lsq", qkr=True, activation_quantizer=activations).train()
    ofq.calibrate(model, images.train_inputs)
    set_gradient_batch(model, counted=BATCH, per_pass=BATCH // passes // group.count)
    session = Session(group=group)
    session.checkpoints = checkpoints or NoCheckpoints()
    session.stop = stop or StopRequest()
    technique = make_technique(name, model, OPTIONS.get(name, {}))
    training = Training(**SETTINGS | settings)
    return Trainer(model, images, Classification(), [technique], training, session, passes=passes)


def ended(trainer):
    """All that a training leaves: trained and final weights, and the technique's state."""
    state = {f"trained.{name}": value for name, value in trainer.model.state_dict().items()}
    state |= {f"final.{name}": value for name, value in trainer.final_model().state_dict().items()}
    state |= {f"own.{name}": value for name, value in trainer.techniques[0].state_dict().items()}
    return {name: value.clone() for name, value in state.items()}


def trained(name, **options):
    trainer = trainer_of(name, **options)
    trainer.run()
    return ended(trainer)


@pytest.mark.parametrize("name", NAMES)
def test_interrupted_training_ends_bit_identical(name):
    whole = trained(name, optimizer="adamw", lr=1e-3, min_lr=1e-4)
    checkpoints = Memory()
    for stop_after in (2, 4, None):
        trainer = trainer_of(name, checkpoints=checkpoints, optimizer="adamw", lr=1e-3, min_lr=1e-4)
        trainer.observer.step = partial(_stop_at, trainer.stop, stop_after)
        try:
            trainer.run()
        except Interrupted:
            assert trainer.step == stop_after
    again = ended(trainer)
    assert whole.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in whole.items())


def _stop_at(stop, wanted, step):
    stop.cause = "SIGTERM" if step == wanted else None


def apart(some, others, start):
    """How far two ends lie apart, as a share of the way from the start."""
    keys = [key for key in some if key.startswith("trained.") and some[key].is_floating_point()]

    def distance(one, other):
        return sum(float((one[key] - other[key]).double().square().sum()) for key in keys) ** 0.5

    return distance(some, others) / distance(some, start)


@pytest.fixture(scope="module")
def alone():
    """What each technique's training in one process and one pass starts from, and how it ends."""
    starts = {name: ended(trainer_of(name)) for name in NAMES}
    return {name: (starts[name], trained(name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_passes_add_up_to_one_batch(alone, name):
    start, whole = alone[name]
    # another order of sums moves some activations to another code; without a code, last bits only
    most = 0.05 if name == "clip_penalty" else 1e-3
    assert apart(whole, trained(name, passes=4), start) < most


def _train_as_rank(rank, port, folder):
    variables = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in variables.items()}
    torch.set_num_threads(1)
    group = ProcessGroup("cpu")
    torch.save({name: trained(name, group=group) for name in NAMES}, folder / f"{rank}.pt")
    group.destroy()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """How both of two processes end, by technique."""
    folder, port = tmp_path_factory.mktemp("two"), free_port()
    ranks = [FORKSERVER.Process(target=_train_as_rank, args=(r, port, folder)) for r in (0, 1)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        assert rank.exitcode == 0
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_end_alike_and_as_one(alone, two, name):
    start, whole = alone[name]
    one, other = (ends[name] for ends in two)
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert apart(whole, one, start) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_step_skipped_by_the_scaler_leaves_all_weights(name):
    trainer = trainer_of(name)
    scaler = torch.amp.GradScaler("cpu")
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.inf)
    scaler.scale(torch.ones(()))
    before = ended(trainer)
    trainer.techniques[0].step(trainer.optimizer, scaler)
    scaler.update()
    after = ended(trainer)
    weights = [key for key in before if key.startswith(("trained.", "final."))]
    assert all(torch.equal(before[key], after[key]) for key in weights)


@pytest.mark.parametrize("name", NAMES)
def test_capturable_technique_does_the_same_whatever_the_progress(name):
    first = trainer_of(name)
    if not first.techniques[0].capturable:
        return
    ends = []
    for progress in (0.0, 0.4, 1.0):
        trainer = trainer_of(name)
        own = trainer.techniques[0]
        batch = next(trainer.data.train_batches(0, BATCH))
        (trainer.model(batch.inputs).sum() + own.penalty(progress)).backward()
        own.step(trainer.optimizer, progress=progress)
        ends.append(ended(trainer))
    assert all(torch.equal(ends[0][key], end[key]) for end in ends for key in end)


def test_training_names_no_technique():
    """What only a technique knows is behind its hooks."""
    classes = [made.__name__ for made in techniques.values() if isinstance(made, type)]
    words = re.compile(rf"\b({'|'.join([*NAMES, *classes])})\b")
    files = Path(distributed.__file__).parent.rglob("*.py")
    found = {path.name: words.findall(path.read_text(encoding="utf-8")) for path in files}
    assert len(found) > 20
    assert not {name: names for name, names in found.items() if names}
