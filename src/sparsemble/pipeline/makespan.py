"""How long tasks take on some workers that are started as the driver starts them."""

from collections.abc import Collection, Hashable, Mapping, Set
from graphlib import TopologicalSorter
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Needs = Mapping[Key, Collection[Key]]
"""For each task that has not finished, those of them that it needs."""


def makespan(
    needs: Needs[Key], workers: int, seconds: Mapping[Key, float], *, alone: Set[Key], running: Collection[Key] = ()
) -> float:
    """Return the seconds until all tasks are done, if they are started as the driver does.

    Args:
        needs: of each task that has not finished, which of these it waits for.
        workers: tasks that run at the same time, at most.
        seconds: that each task will take, or has left.
        alone: tasks beside which nothing runs.
        running: tasks that have started.
    """
    ahead = longest_chains(needs, seconds)
    missing = {task: len(needs[task]) for task in needs}
    dependents: dict[Key, list[Key]] = {task: [] for task in needs}
    for task, needed in needs.items():
        for other in needed:
            dependents[other].append(task)
    ends = {task: seconds[task] for task in running}
    ready = sorted((task for task in needs if not missing[task] and task not in ends), key=lambda task: -ahead[task])
    now = 0.0
    while ready or ends:
        for task in list(ready):
            is_alone = task in alone or any(other in alone for other in ends)
            if len(ends) < workers and not (is_alone and ends):
                ready.remove(task)
                ends[task] = now + seconds[task]
        now = min(ends.values())
        for task in [task for task, end in ends.items() if end <= now]:
            del ends[task]
            for other in dependents[task]:
                missing[other] -= 1
                if not missing[other]:
                    ready.append(other)
        ready.sort(key=lambda task: -ahead[task])
    return now


def longest_chains(needs: Needs[Key], cost: Mapping[Key, float]) -> dict[Key, float]:
    """Return, for each task, its cost plus that of the longest chain of tasks that wait for it."""
    ahead = dict.fromkeys(needs, 0.0)
    for task in reversed([*TopologicalSorter(needs).static_order()]):
        ahead[task] += cost[task]
        for needed in needs[task]:
            ahead[needed] = max(ahead[needed], ahead[task])
    return ahead
