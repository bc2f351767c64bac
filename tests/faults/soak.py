"""Kills trainers at random moments until a number of kills is reached, and counts what was lost.

Each run is killed again and again until it gets through, and is then compared with the same run
left undisturbed: weights bit for bit, rows one for one, and its mirror in MLflow point for point. A
checkpoint is saved after every step, so that kills meet saves too.

    python tests/faults/soak.py [--kills 200] [--seed 0] [--jobs 2] [--json FILE]
"""

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
from machine import keep  # noqa: E402

from tests.support.lab import Lab, build, differences, mirrored_differences  # noqa: E402

STAGES = ("qat", "cga")
LONGEST = 3.0  # seconds from the lock to a kill
MOST_KILLS = 6  # of one run


def soak(undisturbed: Lab, root: Path, seed: int, kills: int) -> Counter[str]:
    """Train one run, killed up to a number of times; what happened, counted."""
    dice = random.Random(seed)
    shutil.copytree(undisturbed.root, root)
    lab, stage = Lab(root), STAGES[seed % len(STAGES)]
    lab.forget(stage)
    counts: Counter[str] = Counter(runs=1)
    for _ in range(kills):
        counts += disturb(lab, stage, dice)
        if lab.folder(stage).complete():
            break
    done = lab.train(stage)
    counts["lost runs"] += done.returncode != 0
    found = differences(lab.folder(stage), undisturbed.folder(stage))
    found += mirrored_differences(lab.folder(stage), lab.root / "results")
    for what in found:
        print(f"seed {seed}: {what}", flush=True)
    counts["differing weights"] += any("weights" in what for what in found)
    counts["missing, doubled or differing rows"] += any("rows" in what for what in found)
    counts["differing mirrors"] += any("MLflow" in what for what in found)
    shutil.rmtree(root)
    return counts


def disturb(lab: Lab, stage: str, dice: random.Random) -> Counter[str]:
    """Start a trainer and kill it at a random moment after it took the lock."""
    trainer = lab.start(stage)
    while trainer.poll() is None and lab.folder(stage).state() != "running":
        time.sleep(0.02)
    time.sleep(dice.uniform(0, LONGEST))
    kind = signal.SIGTERM if dice.random() < 0.1 else signal.SIGKILL
    if trainer.poll() is not None:
        trainer.communicate()
        return Counter(survivors=1)
    trainer.send_signal(kind)
    trainer.communicate()
    return Counter({f"{kind.name}s": 1, "kills": 1})


def main() -> None:
    """Print and keep the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at once")
    parser.add_argument("--json", type=Path, help="write the counts to this file too")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    seed, began = options.seed, time.monotonic()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        undisturbed = build(Path(name) / "undisturbed")
        while total["kills"] < options.kills:
            seeds = range(seed, seed + options.jobs)
            seed += options.jobs
            left = options.kills - total["kills"]
            each = min(MOST_KILLS, -(-left // options.jobs))
            tasks = [pool.submit(soak, undisturbed, Path(name) / str(s), s, each) for s in seeds]
            for task in tasks:
                total += task.result()
            print(f"{time.monotonic() - began:6.0f} s  {report(total)}", flush=True)
    keep(options.json, {"seed": options.seed, "counts": full(total)})
    lost = {what: n for what, n in full(total).items() if what not in ALLOWED and n}
    sys.exit(f"not as if undisturbed: {lost}" if lost else 0)


ALLOWED = ("runs", "kills", "SIGKILLs", "SIGTERMs", "survivors")
ALL = (
    *ALLOWED,
    "lost runs",
    "differing weights",
    "missing, doubled or differing rows",
    "differing mirrors",
)


def full(total: Counter[str]) -> dict[str, int]:
    """All counts, zeros too."""
    return {what: total[what] for what in ALL}


def report(total: Counter[str]) -> str:
    """All counts in a line."""
    return ", ".join(f"{n} {what}" for what, n in full(total).items())


if __name__ == "__main__":
    main()
