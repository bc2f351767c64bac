"""The simulated schedule, beside bounds that any schedule keeps and a search for the best one."""

from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from ofq.monitor.schedule import Task, critical_path, makespan


@st.composite
def graphs(draw, widest=1, most=12):
    """Tasks that need some of those before them, of whole seconds so that sums are exact."""
    tasks = []
    for number in range(draw(st.integers(1, most))):
        earlier = [task.name for task in tasks]
        needs = draw(st.lists(st.sampled_from(earlier), unique=True, max_size=2)) if earlier else []
        seconds, width = draw(st.integers(0, 9)), draw(st.integers(1, widest))
        tasks.append(Task(str(number), float(seconds), "gpu", width, tuple(needs)))
    return tasks


def area(tasks):
    return sum(task.seconds * task.width for task in tasks)


@given(graphs(), st.integers(1, 5))
def test_schedule_lies_between_the_bounds_of_list_scheduling(tasks, gpus):
    found = makespan(tasks, {"gpu": gpus})
    longest = critical_path(tasks)
    assert max(longest, area(tasks) / gpus) <= found + 1e-9
    assert found <= area(tasks) / gpus + longest * (gpus - 1) / gpus + 1e-9


@given(graphs(widest=4), st.integers(4, 6))
def test_wide_tasks_keep_the_lower_bounds_and_are_never_slower_than_one_by_one(tasks, gpus):
    found = makespan(tasks, {"gpu": gpus})
    assert max(critical_path(tasks), area(tasks) / gpus) <= found + 1e-9
    assert found <= sum(task.seconds for task in tasks)


@given(graphs(widest=2))
def test_unlimited_machine_takes_the_longest_chain(tasks):
    assert makespan(tasks, {"gpu": 100}) == critical_path(tasks)


@given(graphs())
def test_longest_chain_is_the_largest_of_all_chains(tasks):
    by_name = {task.name: task for task in tasks}

    def chains(task):
        return task.seconds + max((chains(by_name[need]) for need in task.needs), default=0)

    assert critical_path(tasks) == max(map(chains, tasks))


@settings(max_examples=40)
@given(graphs(widest=2, most=5), st.integers(2, 3))
def test_schedule_is_one_that_a_list_gives_and_at_most_twice_the_best(tasks, gpus):
    """All lists, tried by a scheduler that steps through time second by second."""
    found = makespan(tasks, {"gpu": gpus})
    every = {by_clock(order, gpus) for order in permutations(tasks)}
    assert found in every
    if all(task.width == 1 for task in tasks):
        assert found <= 2 * min(every)


def by_clock(order, gpus):
    """Seconds that a list of tasks takes, each started as soon as it can be, the plain way."""
    ends = {}
    waiting, now = list(order), 0
    while waiting:
        progressed = True
        while progressed:
            progressed = False
            for task in list(waiting):
                used = sum(t.width for t in order if t.name in ends and ends[t.name] > now)
                ready = all(need in ends and ends[need] <= now for need in task.needs)
                if ready and used + task.width <= gpus:
                    ends[task.name] = now + task.seconds
                    waiting.remove(task)
                    progressed = task.seconds == 0
        now += 1
    return max(ends.values())


def test_hand_made_example():
    """fp 2 h, then three QAT of 4 h and a CGA of 1 h after the first: on two GPUs 2 + 4 + 4."""
    tasks = [
        Task("fp", 2, "gpu", 1),
        *(Task(f"qat{n}", 4, "gpu", 1, ("fp",)) for n in range(3)),
        Task("cga", 1, "gpu", 1, ("qat0", "fp")),
    ]
    assert makespan(tasks, {"gpu": 1}) == 15
    assert makespan(tasks, {"gpu": 2}) == 10
    assert makespan(tasks, {"gpu": 3}) == 7
    assert critical_path(tasks) == 7


def test_pools_do_not_wait_for_each_other():
    tasks = [Task("a", 3, "gpu", 1), Task("b", 4, "core", 2)]
    assert makespan(tasks, {"gpu": 1, "core": 2}) == 4


def test_nothing_takes_no_time():
    assert makespan([], {"gpu": 1}) == critical_path([]) == 0
