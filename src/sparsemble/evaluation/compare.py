"""Set evaluations side by side: what they share, where they differ, and whether a difference is more than chance."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sparsemble.core.errors import InputError
from sparsemble.evaluation.statistics import paired_difference

LEVEL = 0.95
SAME_EPS = 1e-9
"""Radii nearer than this are one radius: 8/255 and 0.031372549 are, 8/255 and 0.031 are not."""

Results = Sequence[tuple[str, dict[str, Any]]]


def compare(results: Results) -> dict[str, Any]:
    """Compare evaluations of different classifiers on the same images under the same threat model.

    A row is one model, made once: none of the differences speaks of another seed of its training.

    Args:
        results: names and results (docs/evaluation_json.md, already validated), two or more; a name given again is
            numbered.

    Returns:
        The comparison (docs/evaluation_json.md, "comparison"): rows, all pairs with paired tests, attacks that are
        not the same everywhere, and sentences: alarms forbid to rely on a row, notes say what keeps rows apart.

    Raises:
        InputError: fewer than two results, or results that do not belong in one table.
    """
    if len(results) < 2:
        raise InputError(f"a comparison needs two or more results, got {len(results)}")
    named = _numbered(results)
    for name, result in named[1:]:
        _check_same(named[0], (name, result))
    first = named[0][1]
    attacks = _attacks(named)
    return {
        "schema": 1,
        "kind": "comparison",
        "level": LEVEL,
        "data": {key: first["data"][key] for key in ("name", "sha256", "split", "images", "subset_seed", "classes")},
        "threat": first["threat"],
        "rows": [_row(name, result) for name, result in named],
        "pairs": [_pair(a, b) for a, b in itertools.combinations(named, 2)],
        "attacks": attacks,
        "alarms": list(_alarms(named)),
        "notes": [*_differences(named, attacks), *_limits(named)],
    }


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of McNemar's exact test.

    Args:
        only_a: images that the first classifier alone gets right.
        only_b: images that the second one alone gets right.

    Returns:
        The probability of a split at least as uneven if either classifier were as likely to win an image on which
        they differ; 1 where they differ on none.

    Source: McNemar 1947, with the binomial distribution in place of its normal limit.
    """
    n, fewer = only_a + only_b, min(only_a, only_b)
    # Whole numbers: the terms overflow a float long before their quotient does.
    term = tail = 1
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def _numbered(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """Tell results of the same name apart."""
    named: dict[str, dict[str, Any]] = {}
    for name, result in results:
        others = (f"{name} ({number})" for number in itertools.count(2))
        named[next(free for free in itertools.chain([name], others) if free not in named)] = result
    return list(named.items())


def _check_same(a: tuple[str, dict[str, Any]], b: tuple[str, dict[str, Any]]) -> None:
    """Refuse two results whose numbers do not answer the same question."""
    (name_a, first), (name_b, second) = a, b
    (data_a, threat_a), (data_b, threat_b) = (first["data"], first["threat"]), (second["data"], second["threat"])
    pair = f'"{name_a}" and "{name_b}" cannot be compared'
    if data_a["sha256"] != data_b["sha256"] or data_a["split"] != data_b["split"]:
        told = [f"{data['name']} ({data['split']}, sha256 {data['sha256'][:8]})" for data in (data_a, data_b)]
        raise InputError(f"{pair}: the first was measured on {told[0]}, the second on {told[1]}; evaluate both on one")
    if data_a["indices"] != data_b["indices"]:
        told = [f"{data['images']} images (subset seed {data['subset_seed']})" for data in (data_a, data_b)]
        same = f"; {len(set(data_a['indices']) & set(data_b['indices']))} are the same"
        raise InputError(f"{pair}: the first used {told[0]}, the second {told[1]}{same}; give both the same --images")
    if threat_a["norm"] != threat_b["norm"]:
        raise InputError(f"{pair}: the first is measured in {threat_a['norm']}, the second in {threat_b['norm']}")
    if abs(threat_a["eps"] - threat_b["eps"]) > SAME_EPS:
        told = [f"{threat['eps_text']} = {threat['eps']:.6g}" for threat in (threat_a, threat_b)]
        raise InputError(f"{pair}: eps is {told[0]} in the first and {told[1]} in the second; these are never mixed")
    if threat_a["knowledge"] != threat_b["knowledge"]:
        told = [threat["knowledge"] for threat in (threat_a, threat_b)]
        raise InputError(f"{pair}: the adversary's knowledge is {told[0]} in the first and {told[1]} in the second")


def _row(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """Return what the table says about one classifier."""
    target, size, times = result["target"], result["size"], result["latency"]
    found = {status: [c["number"] for c in result["checks"] if c["status"] == status] for status in ("fail", "waived")}
    return {
        "name": name,
        "sha256": target["sha256"],
        "members": target["members"],
        "stopping": target["stopping"],
        "selected_on": target["selected_on"],
        "single_seed": True,
        "clean_accuracy": result["clean_accuracy"],
        "clean_interval": result["clean_interval"],
        "worst_case": result["worst_case"]["accuracy"],
        "worst_case_interval": result["worst_case"]["interval"],
        "attacks": {label: attack["robust_accuracy"] for label, attack in result["attacks"].items()},
        "seed": result["seeds"]["attacks"],
        "search": result["search"],
        "autoattack": _modes(result),
        "sparsity": target["sparsity"],
        **size,
        "latency_ms": {batch: time["median_ms"] for batch, time in times.items()} if times else None,
        "members_run": result["members_run"],
        "passes": result["passes"],
        "seconds": result["seconds"],
        "failed": found["fail"],
        "waived": found["waived"],
    }


def _modes(result: dict[str, Any]) -> list[str]:
    """Return how AutoAttack ran, as in `exact` or `exact rand`."""
    runs = [attack for attack in result["attacks"].values() if attack["mode"] is not None]
    variants = [attack["settings"].get("variant", "standard") for attack in runs]
    return sorted(
        run["mode"] + (f" {variant}" if variant != "standard" else "")
        for run, variant in zip(runs, variants, strict=True)
    )


def _pair(a: tuple[str, dict[str, Any]], b: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Compare two classifiers image by image, in their own worst cases."""
    (name_a, first), (name_b, second) = a, b
    right_a, right_b = (np.asarray(result["worst_case"]["outcomes"], bool) for result in (first, second))
    difference, low, high = paired_difference(right_a, right_b, LEVEL)
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return {
        "a": name_a,
        "b": name_b,
        "difference": difference,
        "interval": [low, high],
        "holds_zero": low <= 0 <= high,
        "only_a": only_a,
        "only_b": only_b,
        "p_value": mcnemar(only_a, only_b),
        "same_attacks": _settings(first) == _settings(second),
    }


def _settings(result: dict[str, Any]) -> dict[str, Any]:
    return {label: attack["settings"] for label, attack in result["attacks"].items()}


def _attacks(named: Results) -> dict[str, Any]:
    """Return the attacks that all results share, with the same settings, and those that only some have."""
    settings = {name: _settings(result) for name, result in named}
    labels = dict.fromkeys(label for of_one in settings.values() for label in of_one)
    shared, partial, different = [], {}, []
    for label in labels:
        having = [name for name in settings if label in settings[name]]
        if len(having) < len(named):
            partial[label] = having
        elif all(settings[name][label] == settings[having[0]][label] for name in having):
            shared.append(label)
        else:
            different.append(label)
    return {"shared": shared, "partial": partial, "different_settings": different}


def _alarms(named: Results) -> Iterator[str]:
    """Yield sentences on what forbids to rely on a row."""
    failed = {
        name: ", ".join(str(check["number"]) for check in result["checks"] if check["status"] == "fail")
        for name, result in named
    }
    told = [f"{name} {numbers}" for name, numbers in failed.items() if numbers]
    if told:
        yield f"Checks failed: {'; '.join(told)}. Do not rely on these rows before that is understood."
    chosen = [name for name, result in named if result["target"]["selected_on"] == "test"]
    if chosen:
        yield f"Selected on test images: {', '.join(chosen)}. Accuracies of these rows are too high."
    unreliable = [name for name, result in named if result["unreliable"]]
    if unreliable:
        yield f"Marked unreliable: {', '.join(unreliable)}. Stronger attacks are likely to find more."


def _differences(named: Results, attacks: dict[str, Any]) -> Iterator[str]:
    """Yield sentences on what differs between the rows beside the classifier."""
    modes = {name: " and ".join(_modes(result)) or "not run" for name, result in named}
    if len(set(modes.values())) > 1:
        told = ", ".join(f"{name}: {mode}" for name, mode in modes.items())
        yield f"AutoAttack did not run alike ({told}): the weaker mode flatters its row."
    on_ensembles = [
        label for label, having in attacks["partial"].items() if _only_lacked_by_singles(named, label, having)
    ]
    if on_ensembles:
        yield (
            f"Attacks on ensembles ({len(on_ensembles)}) ran on the rows that are ensembles, as they must: those rows face more "
            "attacks than a single model."
        )
    others = [label for label in attacks["partial"] if label not in on_ensembles]
    if others:
        yield (
            f"The attacks are not the same: {_listed(others)} ran on some rows only. A row with fewer attacks has an "
            "easier worst case."
        )
    if attacks["different_settings"]:
        yield f"The settings of {_listed(attacks['different_settings'])} differ between rows."
    aspects: dict[str, Callable[[dict[str, Any]], str]] = {
        "searched in different precisions": lambda result: str(result["search"]),
        "measured on different machines, so that times and latencies cannot be compared": _machine,
        "attacked with different seeds": lambda result: str(result["seeds"]["attacks"]),
    }
    for aspect, of_result in aspects.items():
        found = {name: of_result(result) for name, result in named}
        if len(set(found.values())) > 1:
            yield f"The rows were {aspect} ({', '.join(f'{name}: {value}' for name, value in found.items())})."


def _limits(named: Results) -> Iterator[str]:
    """Yield sentences on what the tests do not say."""
    if len(named) > 2:
        pairs = len(named) * (len(named) - 1) // 2
        yield f"{pairs} pairs are tested; the p-values are not corrected for that."
    yield "Every row is one model, trained once: the tests say whether these models differ, not whether the methods do."


def _only_lacked_by_singles(named: Results, label: str, having: Sequence[str]) -> bool:
    """Say whether an attack is one on ensembles and ran on every ensemble."""
    kinds = {result["attacks"][label]["kind"] for name, result in named if name in having}
    return kinds == {"ensemble attack"} and all(name in having or r["target"]["members"] == 1 for name, r in named)


def _machine(result: dict[str, Any]) -> str:
    machine = result["machine"]
    device = machine.get("device", "cpu")
    return str(machine.get("processor", "unknown") if device == "cpu" else device)


def _listed(names: Sequence[str], most: int = 4) -> str:
    """Write the first few names."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
