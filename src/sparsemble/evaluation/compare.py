"""Evaluations side by side: what they share, where they differ, and whether a difference is more than chance."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.core.results import ComparisonResult, EvaluationResult, PairedTest, QuotedResult
from sparsemble.evaluation.checks.reporting import SAME_EPS
from sparsemble.evaluation.quoted_results import check_quoted, quoted_notes
from sparsemble.evaluation.statistics import LEVEL, mcnemar, paired_difference

Results = Sequence[EvaluationResult]


def compare(results: Results, quoted: Sequence[QuotedResult] = ()) -> ComparisonResult:
    """Compare evaluations of different classifiers on the same images under the same threat model.

    A row is one model, trained once: no difference between rows accounts for the seed of training.

    Args:
        results: one or more; a name that occurs again is numbered.
        quoted: numbers of others, which stand beside the rows without a test.

    Returns:
        The rows, a paired test of every two, the attacks that differ, and sentences: alarms forbid to rely on a row,
        notes name what differs between rows besides the classifier.

    Raises:
        InputError: fewer than two results, none of ours, or results that do not belong in one table.
    """
    if len(results) + len(quoted) < 2:
        raise InputError(f"a comparison needs two or more results, got {len(results) + len(quoted)}")
    if not results:
        raise InputError(
            "numbers of others are compared with results of `sparsemble evaluate`; name at least one of these"
        )
    rows = _numbered(results)
    for row in rows[1:]:
        _check_same(rows[0], row)
    for other in quoted:
        check_quoted(rows[0], other)
    shared, partial, differing = _attacks(rows)
    return ComparisonResult(
        level=LEVEL,
        rows=tuple(rows),
        pairs=tuple(paired_test(a, b) for a, b in itertools.combinations(rows, 2)),
        shared_attacks=shared,
        partial_attacks=partial,
        differing_attacks=differing,
        alarms=tuple(_alarms(rows)),
        notes=(*_differences(rows, partial, differing), *quoted_notes(rows[0], quoted), *_limits(rows)),
        quoted=_unlike([row.name for row in rows], quoted),
    )


def _numbered(results: Results) -> list[EvaluationResult]:
    """Give results names of their own."""
    rows: dict[str, EvaluationResult] = {}
    for result in results:
        others = (f"{result.name} ({number})" for number in itertools.count(2))
        name = next(free for free in itertools.chain([result.name], others) if free not in rows)
        rows[name] = replace(result, name=name)
    return list(rows.values())


def _unlike(taken: Sequence[str], quoted: Sequence[QuotedResult]) -> tuple[QuotedResult, ...]:
    """Give numbers of others names that no row has."""
    names = set(taken)
    unlike = []
    for other in quoted:
        free = (name for i in itertools.count(1) if (name := other.name + f" ({i})" * (i > 1)) not in names)
        unlike.append(replace(other, name=next(free)))
        names.add(unlike[-1].name)
    return tuple(unlike)


def _check_same(first: EvaluationResult, second: EvaluationResult) -> None:
    """Refuse two results that were measured on other images or under another threat model."""
    a, b = first.data, second.data
    threat, other = first.threat, second.threat
    reason = ""
    if a.sha256 != b.sha256 or a.split != b.split:
        images = [f"{data.name} ({data.split}, sha256 {data.sha256[:8]})" for data in (a, b)]
        reason = f"the first was measured on {images[0]}, the second on {images[1]}; evaluate both on one"
    elif a.indices != b.indices:
        images = [f"{data.images} images (subset seed {data.subset_seed})" for data in (a, b)]
        same = len(set(a.indices) & set(b.indices))
        reason = f"the first used {images[0]}, the second {images[1]}; {same} are the same; give both the same --images"
    elif threat.norm != other.norm:
        reason = f"the first is measured in {threat.norm}, the second in {other.norm}"
    elif abs(threat.eps - other.eps) > SAME_EPS:
        radii = [f"{each.eps_text} = {each.eps:.6g}" for each in (threat, other)]
        reason = f"eps is {radii[0]} in the first and {radii[1]} in the second; these are never mixed"
    elif threat.knowledge != other.knowledge:
        reason = f"the adversary's knowledge is {threat.knowledge} in the first and {other.knowledge} in the second"
    if reason:
        raise InputError(f'"{first.name}" and "{second.name}" cannot be compared: {reason}')


def _autoattack_modes(result: EvaluationResult) -> str:
    """Return how AutoAttack ran, as in `exact` or `exact rand`."""
    modes = []
    for attack in result.attacks:
        if attack.mode is not None:
            variant = attack.settings.get("attack", attack.settings).get("variant", "standard")
            modes.append(attack.mode + (f" {variant}" if variant != "standard" else ""))
    return " and ".join(sorted(modes)) or "not run"


def paired_test(a: EvaluationResult, b: EvaluationResult) -> PairedTest:
    """Compare two classifiers image by image, in their own worst cases."""
    first, second = (np.asarray(result.worst_case.correct, bool) for result in (a, b))
    difference, low, high = paired_difference(first, second)
    only_a, only_b = int((first & ~second).sum()), int((second & ~first).sum())
    return PairedTest(
        a=a.name,
        b=b.name,
        difference=difference,
        interval=(low, high),
        contains_zero=low <= 0 <= high,
        only_a=only_a,
        only_b=only_b,
        p_value=mcnemar(only_a, only_b),
        same_attacks=_settings(a) == _settings(b),
    )


def _settings(result: EvaluationResult) -> dict[str, dict[str, Any]]:
    return {attack.label: attack.settings for attack in result.attacks}


def _attacks(rows: Results) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Return the attacks that all rows share, those that only some rows faced, and those with different settings."""
    settings = {row.name: _settings(row) for row in rows}
    labels = dict.fromkeys(label for attacks in settings.values() for label in attacks)
    faced = {label: tuple(name for name in settings if label in settings[name]) for label in labels}
    partial = {label: names for label, names in faced.items() if len(names) < len(rows)}
    whole = [label for label in labels if label not in partial]
    first = settings[rows[0].name]
    shared = tuple(label for label in whole if all(attacks[label] == first[label] for attacks in settings.values()))
    return shared, partial, tuple(label for label in whole if label not in shared)


def _alarms(rows: Results) -> Iterator[str]:
    """Yield sentences on what forbids to rely on a row."""
    failed = {row.name: ", ".join(str(check.number) for check in row.checks_with("failed")) for row in rows}
    numbers = [f"{name} {checks}" for name, checks in failed.items() if checks]
    if numbers:
        yield f"Checks failed: {'; '.join(numbers)}. Do not rely on these rows before that is understood."
    on_test = [row.name for row in rows if row.model.selected_on == "test"]
    if on_test:
        yield f"Selected on test images: {', '.join(on_test)}. Accuracies of these rows are too high."


def _differences(rows: Results, partial: Mapping[str, Sequence[str]], differing: Sequence[str]) -> Iterator[str]:
    """Yield sentences on what differs between the rows besides the classifier."""
    modes = {row.name: _autoattack_modes(row) for row in rows}
    if len(set(modes.values())) > 1:
        yield f"AutoAttack did not run alike ({_by_row(modes)}): the weaker mode flatters its row."
    on_ensembles = [label for label, names in partial.items() if _lacked_by_singles_only(rows, label, names)]
    if on_ensembles:
        yield (
            f"Attacks on ensembles ({len(on_ensembles)}) ran on the rows that are ensembles, as they must: those rows "
            "face more attacks than a single model."
        )
    others = [label for label in partial if label not in on_ensembles]
    if others:
        yield (
            f"The attacks are not the same: {_listed(others)} ran on some rows only. A row with fewer attacks has an "
            "easier worst case."
        )
    if differing:
        yield f"The settings of {_listed(differing)} differ between rows."
    aspects: dict[str, Callable[[EvaluationResult], str]] = {
        "searched in different precisions": lambda row: row.search_dtype,
        "measured on different machines, so that times and latencies cannot be compared": _machine,
        "attacked with different seeds": lambda row: str(row.seed),
    }
    for aspect, of_row in aspects.items():
        values = {row.name: of_row(row) for row in rows}
        if len(set(values.values())) > 1:
            yield f"The rows were {aspect} ({_by_row(values)})."


def _limits(rows: Results) -> Iterator[str]:
    """Yield sentences on what the tests do not establish."""
    if len(rows) > 2:
        yield f"{len(rows) * (len(rows) - 1) // 2} pairs are tested; the p-values are not corrected for that."
    yield (
        "Every row is one model, trained once: the tests are about a difference between these models, not between "
        "methods."
    )


def _lacked_by_singles_only(rows: Results, label: str, names: Sequence[str]) -> bool:
    """Return whether an attack is one on ensembles and ran on every ensemble."""
    kinds = {row.attack(label).kind for row in rows if row.name in names}
    return kinds == {"ensemble attack"} and all(row.name in names or row.model.members == 1 for row in rows)


def _machine(result: EvaluationResult) -> str:
    device = result.machine.get("device", "cpu")
    return str(result.machine.get("processor", "unknown") if device == "cpu" else device)


def _by_row(values: Mapping[str, str]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _listed(names: Sequence[str], most: int = 4) -> str:
    """Write the first few names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
