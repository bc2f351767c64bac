"""What stands in the way of studies' remaining runs: all of it at once, a line each."""

import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence

from ofq.config import Run, Workspace
from ofq.config.construction import Construction, constructions
from ofq.errors import UserError
from ofq.monitor.check.passed import Passed
from ofq.runs.attempt import run_folder
from ofq.runs.folder import RESULT
from ofq.runs.inputs import missing_data, missing_files


class Remaining:
    """Remaining runs of some studies, and what they need.

    Args:
        workspace: The checkout.
        studies: Names of the studies.

    Attributes:
        faults: A line for each study whose config is wrong; its runs are left out.
        count: Number of runs that haven't finished, shared ones once.
    """

    def __init__(self, workspace: Workspace, studies: Iterable[str]) -> None:
        self.workspace = workspace
        self.faults: list[str] = []
        self._runs: dict[str, dict[str, Run]] = {}
        for study in dict.fromkeys(studies):
            try:
                runs = workspace.grid(study).runs()
            except UserError as error:
                self.faults.append(str(error))
                continue
            self._runs[study] = {name: run for name, run in runs.items() if self._to_do(run)}
        self.count = len({name for runs in self._runs.values() for name in runs})
        self._passed: Passed | None = None

    def _to_do(self, run: Run) -> bool:
        return not (run_folder(self.workspace, run).path / RESULT).exists()

    def missing(self) -> list[str]:
        """Return a line for each data set and each file that isn't where the config says."""
        lines: list[str] = []
        known: set[str] = set()
        for study, runs in self._runs.items():
            for run in runs.values():
                config = run.config
                lines += missing_files(self.workspace, config, study)
                if config.dataset not in known:
                    known.add(config.dataset)
                    lines += missing_data(self.workspace, config)
        return [*dict.fromkeys(lines)]

    def unknown(self) -> list[Construction]:
        """Return what the runs construct and hasn't passed the checks yet; needs no torch."""
        wanted = [
            each
            for study, runs in self._runs.items()
            if runs
            for each in constructions(self.workspace, study, runs)
        ]
        if not wanted:
            return []
        self._passed = Passed(self.workspace.results)
        return [each for each in wanted if not self._passed.covers(each)]

    def mistakes(self) -> list[str]:
        """Construct what hasn't passed yet, and return a line for each mistake.

        Loads torch if there is any. The user's own modules are imported.

        Raises:
            UserError: This is an unpacked bundle.
        """
        unknown = self.unknown()
        if not unknown:
            return []
        self.workspace.refuse_bundle("check a study")
        from ofq.training.construction import mistakes

        found = [(each, [*mistakes(each)]) for each in unknown]
        assert self._passed is not None
        if sound := [each for each, lines in found if not lines]:
            self._passed.add(sound)
        return [*dict.fromkeys(line for _, lines in found for line in lines)]


def before_start(workspace: Workspace, studies: Sequence[str], elsewhere: bool) -> Iterator[str]:
    """Check studies as a workflow starts; its process never loads torch.

    Args:
        workspace: The checkout.
        studies: Names of the studies that were asked for.
        elsewhere: Whether runs may start on other machines, or none may start at all, so that
            missing files are no mistake.

    Yields:
        A warning for each missing file, if that is no mistake.

    Raises:
        UserError: All mistakes, a line each.
    """
    remaining = Remaining(workspace, studies)
    missing, mistakes = remaining.missing(), list(remaining.faults)
    if not mistakes and remaining.unknown():
        mistakes += _in_a_process(workspace, studies)
    if mistakes or (missing and not elsewhere):
        raise UserError("\n".join([*mistakes, *missing]))
    yield from missing


def _in_a_process(workspace: Workspace, studies: Sequence[str]) -> list[str]:
    """Return the mistakes that ``ofq check`` finds in a process of its own."""
    command = [sys.executable, "-m", "ofq", "check", "--elsewhere", *studies]
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return []
    _, _, told = done.stderr.partition("error: ")  # warnings of libraries may stand before it
    lines = told.strip().splitlines() or done.stderr.strip().splitlines()[-1:]
    return lines or [f"`ofq check` ended with exit code {done.returncode}"]
