"""Time of a graph of jobs on a machine of given size, by simulated list scheduling."""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Job of a graph.

    Attributes:
        name: Its name.
        seconds: Its duration.
        pool: The resource that it occupies.
        width: The amount of the resource.
        needs: Names of the tasks that must have ended before.
        running: Whether it runs already, so that it is the first to hold its resource.
    """

    name: str
    seconds: float
    pool: str
    width: int
    needs: tuple[str, ...] = ()
    running: bool = False


def makespan(tasks: Sequence[Task], capacity: Mapping[str, int]) -> float:
    """Return the seconds from the start of the first task to the end of the last.

    Whenever a resource is free, the waiting tasks that fit are started, first those with the
    longest path to the end. That is at most twice as long as the best schedule if all widths are 1.

    Args:
        tasks: The jobs, each after those that it needs.
        capacity: The amount of each resource; at least as much as the widest task takes.
    """
    first = {
        task.name: (not task.running, -way) for task, way in zip(tasks, _ways(tasks), strict=True)
    }
    blocked = {task.name: len(task.needs) for task in tasks}
    followers: dict[str, list[Task]] = {task.name: [] for task in tasks}
    for task in tasks:
        for need in task.needs:
            followers[need].append(task)
    free = dict(capacity)
    ready = [task for task in tasks if not task.needs]
    running: list[tuple[float, int, Task]] = []
    now, started = 0.0, 0
    while ready or running:
        ready.sort(key=lambda task: first[task.name])
        waiting = []
        for task in ready:
            if task.width <= free[task.pool]:
                free[task.pool] -= task.width
                started += 1
                heapq.heappush(running, (now + task.seconds, started, task))
            else:
                waiting.append(task)
        ready, now = waiting, running[0][0]
        while running and running[0][0] == now:
            _, _, ended = heapq.heappop(running)
            free[ended.pool] += ended.width
            for task in followers[ended.name]:
                blocked[task.name] -= 1
                if not blocked[task.name]:
                    ready.append(task)
    return now


def critical_path(tasks: Sequence[Task]) -> float:
    """Return the seconds of the longest chain, the least time on any machine.

    Args:
        tasks: The jobs, each after those that it needs.
    """
    return max(_ways(tasks), default=0.0)


def _ways(tasks: Sequence[Task]) -> list[float]:
    """Return, for each task, the seconds of the longest chain that begins with it."""
    after = {task.name: 0.0 for task in tasks}
    ways = []
    for task in reversed(tasks):
        way = task.seconds + after[task.name]
        ways.append(way)
        for need in task.needs:
            after[need] = max(after[need], way)
    return ways[::-1]
