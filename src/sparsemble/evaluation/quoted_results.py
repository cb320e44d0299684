"""Results of others that stand beside ours: RobustBench's JSON files and the logs of AutoAttack."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from sparsemble.core.errors import InputError
from sparsemble.core.results import EvaluationResult, QuotedResult
from sparsemble.evaluation.checks.reporting import SAME_EPS

NORMS = {"linf": "linf", "l2": "l2", "l1": "l1"}
ACCURACIES = ("autoattack_acc", "external", "corruptions_acc", "clean_acc")
"""Fields by which RobustBench's files are recognised."""
UNNAMED = ("arrays", "images", "image_folder")
"""Names of data that do not tell which images these are."""
STANDARD = ["APGD-CE", "APGD-T", "FAB-T", "SQUARE"]
"""Parts of AutoAttack's standard version, in their order."""
LOGGED = 5
"""Decimals of a perturbation in a log."""


def read_result(path: Path) -> EvaluationResult | QuotedResult:
    """Read a result of `sparsemble evaluate`, a JSON file of RobustBench, or a log of AutoAttack.

    Raises:
        InputError: the file cannot be read, is none of these, or is not complete.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    try:
        table = json.loads(text)
    except ValueError:
        if re.search(r"robust accuracy", text):
            return _from_log(path, text)
        table = None
    if isinstance(table, dict) and "schema" not in table and any(name in table for name in ACCURACIES):
        return _from_robustbench(path, table)
    if not isinstance(table, dict) or "schema" not in table:
        raise InputError(
            f"{path} is neither a result of `sparsemble evaluate`, nor a JSON file of RobustBench (with clean_acc and "
            "autoattack_acc), nor a log of AutoAttack (with robust accuracy)"
        )
    return EvaluationResult.load(path)


def _from_robustbench(path: Path, table: Mapping[str, Any]) -> QuotedResult:
    """Read the fields of RobustBench; the norm is `threat` or `norm`, else the name of the folder, as there."""
    percents: dict[str, float] = {
        name: _percent(path, name, table[name]) for name in ACCURACIES if table.get(name) is not None
    }
    attacks: dict[str, float] = {name: percents[name] for name in ACCURACIES[:2] if name in percents}
    threat = str(table.get("threat") or table.get("norm") or path.resolve().parent.name)
    norm: Any = NORMS.get(threat.lower())
    if attacks and norm is None:
        raise InputError(
            f'{path} does not give its norm; keep it in a folder Linf or L2, as RobustBench does, or add "threat": '
            '"Linf"'
        )
    eps = table.get("eps")
    if attacks and (eps is None or _number(eps) is None):
        raise InputError(f"{path}: eps = {eps!r} must be a number, as in 8/255")
    return QuotedResult(
        name=path.stem,
        source=str(path),
        kind="RobustBench",
        data=_text(table.get("dataset")),
        norm=norm if attacks else None,
        eps_text=_text(eps) if attacks else None,
        architecture=_text(table.get("architecture")),
        clean_accuracy=percents.get("clean_acc"),
        robust_accuracy=min(attacks.values(), default=None),
        corrupted_accuracy=percents.get("corruptions_acc"),
        attacks=attacks,
        unreliable=table.get("unreliable") in (True, "true", "True"),
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _percent(path: Path, name: str, value: object) -> float:
    number = _number(str(value).strip().removesuffix("%"))
    if number is None or not 0 <= number <= 100:
        raise InputError(f"{path}: {name} = {value!r} must be an accuracy in percent")
    return round(number / 100, 6)


def _number(value: object) -> float | None:
    try:
        return float(Fraction(str(value).replace(" ", "")))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _from_log(path: Path, text: str) -> QuotedResult:
    """Read the lines that AutoAttack writes; what is left after each part is the union over the parts so far."""
    initial = re.findall(r"initial (?:clean )?accuracy: ([\d.]+)%", text)  # twice in one that was resumed
    after = re.findall(r"robust accuracy after ([\w-]+): ([\d.]+)%", text)
    final = re.findall(r"robust accuracy: ([\d.]+)%", text)
    if len(final) > 1:
        raise InputError(f"{path} is the log of {len(final)} evaluations; keep the lines of one in a file of its own")
    if not final:
        alone = "has accuracies of single attacks only, and" if "robust accuracy by" in text else "was not finished:"
        raise InputError(f"{path} {alone} the line `robust accuracy: ...%` over all attacks is missing")
    perturbation = re.search(r"max (Linf|L2|L1) perturbation: ([\d.]+)", text)
    norm: Any = perturbation[1].lower() if perturbation else None
    return QuotedResult(
        name=path.stem,
        source=str(path),
        kind="AutoAttack log",
        norm=norm,
        eps_text=perturbation[2] if perturbation and float(perturbation[2]) else None,
        images=_images_of_log(text, initial),
        clean_accuracy=_percent(path, "initial accuracy", initial[-1]) if initial else None,
        robust_accuracy=_percent(path, "robust accuracy", final[0]),
        attacks={part: _percent(path, part, percent) for part, percent in after},
    )


def _images_of_log(text: str, initial: Sequence[str]) -> int | None:
    """Return the number of images, from those that the first part got and the accuracy that they stand for."""
    lines = re.findall(r"^.*?([\w-]+) - \d+/\d+ - \d+ out of (\d+) successfully perturbed", text, re.MULTILINE)
    if not lines or len(initial) != 1 or not float(initial[0]):
        return None
    correct = sum(int(images) for part, images in lines if part == lines[0][0])
    about = round(100 * correct / float(initial[0]))
    near = range(max(correct, about - 2 - about // 1000), about + 3 + about // 1000)
    fitting = [images for images in near if f"{100 * correct / images:.2f}" == initial[0]]
    return fitting[0] if len(fitting) == 1 else None


def check_quoted(row: EvaluationResult, other: QuotedResult) -> None:
    """Refuse numbers of others that were measured on other data or under another threat model than a row.

    Raises:
        InputError: with what differs.
    """
    threat, reason = row.threat, ""
    if other.norm not in (None, threat.norm):
        reason = f"it is measured in {other.norm}, the other in {threat.norm}"
    elif other.eps_text is not None and not _same_eps(threat.eps, other):
        reason = f"its eps is {other.eps_text}, the other's {threat.eps_text} = {threat.eps:.6g}; these are never mixed"
    elif other.data and row.data.name not in UNNAMED and _letters(other.data) != _letters(row.data.name):
        reason = f"it is measured on {other.data}, the other on {row.data.name}"
    elif other.corrupted_accuracy is not None and other.robust_accuracy is None and row.corruptions is None:
        reason = "it is an accuracy under corruptions, and the other has none; evaluate with --corruptions"
    if reason:
        raise InputError(f'"{other.name}" ({other.source}) and "{row.name}" cannot be compared: {reason}')


def _same_eps(eps: float, other: QuotedResult) -> bool:
    if other.kind == "AutoAttack log":
        return abs(eps - float(other.eps_text or 0)) <= 0.51 * 10.0**-LOGGED
    return abs(eps - (_number(other.eps_text) or 0.0)) <= SAME_EPS


def _letters(name: str) -> str:
    return re.sub(r"\W|_", "", name.lower())


def quoted_notes(row: EvaluationResult, quoted: Sequence[QuotedResult]) -> Iterator[str]:
    """Yield sentences on what numbers of others do not establish.

    Args:
        row: one of ours.
        quoted: what stands beside it.
    """
    if not quoted:
        return
    yield (
        f"Quoted, not measured here: {', '.join(other.name for other in quoted)}. These have no outcomes of single "
        "images, so there is no paired test with them, and a difference may be chance."
    )
    for other in quoted:
        unknown = [
            what
            for what, known in {
                "data set": other.data and row.data.name not in UNNAMED,
                "norm": other.norm or other.robust_accuracy is None,
                "eps": other.eps_text or other.robust_accuracy is None,
            }.items()
            if not known
        ]
        if unknown:
            yield f"Whether {other.name} has the same {' and '.join(unknown)} cannot be read from its file; check it."
        if other.images not in (None, row.data.images):
            yield f"{other.name} was measured on {other.images} images, the rows on {row.data.images}."
        elif other.images is None and row.data.subset_seed is not None:
            yield f"The rows are a subset of {row.data.images} images; {other.name} is about all, or about others."
        parts = list(other.attacks)
        if other.kind == "AutoAttack log" and parts != STANDARD[: len(parts)] and other.robust_accuracy:
            yield f"{other.name} ran {', '.join(parts) or 'unknown parts'}: not AutoAttack's standard version."
        if other.unreliable:
            yield f"RobustBench marks the number of {other.name} as unreliable."
