"""The report of one evaluation: its table in the terminal, and one page with its Markdown twin."""

from pathlib import Path

from rich.console import Group
from rich.text import Text

from sparsemble.core.results import EvaluationResult, Examples
from sparsemble.report import figures
from sparsemble.report.descriptions import alarms, autoattack, passes, premises
from sparsemble.report.formatting import count, duration, percent, plural, round_percent, size, span
from sparsemble.report.page import Block, Code, Details, Page, Plot, Section, provenance, settings_text
from sparsemble.report.plot_style import LOOKS
from sparsemble.report.result_tables import (
    attack_table,
    beside_headline,
    checks_section,
    corruption_table,
    terminal_notes,
)


def write_evaluation(result: EvaluationResult, examples: Examples | None, folder: Path) -> None:
    """Write `index.html`, `evaluation.md`, `evaluation.json` and `figures/*.svg`.

    Args:
        result: what the evaluator returned.
        examples: images with the adversarial ones made from them; None: none are shown.
        folder: made if it is missing.
    """
    corrupted = result.corruptions
    page = Page(
        title=f"Evaluation of {result.name}",
        kind="evaluation",
        kicker=[result.name, result.data.name, f"{result.threat.norm} {result.threat.eps_text}"],
        alarms=alarms(result),
        headline=_headline(result),
        comparison=_comparison(result),
        aside=beside_headline(result),
        key_figures=_key_figures(result),
        sections=[
            Section("Attacks", [attack_table(result)]),
            *([Section("Common corruptions", [corruption_table(corrupted)])] if corrupted else []),
            checks_section(result),
            Section("How to reproduce this evaluation", _reproduce(result)),
        ],
        plots=_plots(result, examples),
    )
    page.write(folder, "evaluation.md")
    result.save(folder / "evaluation.json")


def evaluation_table(result: EvaluationResult) -> Group:
    """Return the tables that an evaluation ends with, for a terminal of 80 columns or more."""
    notes = terminal_notes(result, f"{autoattack(result)} {premises(result)}")
    corrupted = []
    if result.corruptions:
        table = corruption_table(result.corruptions)
        title = "Accuracy under common corruptions, %, at severities 1 to 5"
        corrupted = [table.terminal(title, Text(table.caption, style="dim"))]
    return Group(attack_table(result).terminal("".join(_headline(result)), notes), *corrupted)


def _headline(result: EvaluationResult) -> tuple[str, str, str]:
    """Return the result in one sentence; the middle part is the number."""
    low, high = result.interval
    attacks = len(result.attacks)
    over = "under the one attack tried" if attacks == 1 else f"in the worst case over {attacks} attacks"
    modes = sorted({attack.mode for attack in result.attacks if attack.mode})
    tried = f"AutoAttack in {' and '.join(modes)} mode among them" if modes else "AutoAttack not among them"
    return (
        f"{result.name} keeps ",
        f"{percent(result.robust_accuracy)} %",
        f" accuracy {over} (95 % interval {percent(low)} to {percent(high)}), {tried}.",
    )


def _comparison(result: EvaluationResult) -> str:
    strongest = result.strongest
    agreed = f" Attacks searched in {result.search_dtype}; what they found counts only if float32 agrees."
    return (
        f"On clean images it is correct on {percent(result.clean_accuracy)} %; the strongest single attack, "
        f"{strongest.label}, leaves {percent(strongest.robust_accuracy)} %. {autoattack(result)}"
        f"{agreed if result.search_dtype != 'float32' else ''} This is one model and one seed of the attacks."
    )


def _key_figures(result: EvaluationResult) -> list[tuple[str, str, str]]:
    strongest, cost = result.strongest, result.cost
    memory = "" if cost.peak_memory is None else f", {size(cost.peak_memory)} in use for 64"
    return [
        (f"{percent(result.clean_accuracy)} %", "clean accuracy", f"95 % interval {span(result.clean_interval)}"),
        (f"{percent(strongest.robust_accuracy)} %", "under the strongest single attack", strongest.label),
        (count(result.model.nonzeros), "non-zero weights", f"{round_percent(result.model.sparsity)} sparse"),
        (size(cost.bytes), "on disk", f"{count(cost.macs_nonzero)} non-zero MACs an image{memory}"),
        _members_figure(result),
        (passes(result), "passes of the attacks", f"{duration(result.seconds)} on {result.device} in all"),
    ]


def _members_figure(result: EvaluationResult) -> tuple[str, str, str]:
    """Return the members that an ensemble runs, or the latency of a single model."""
    run, members = result.members_run, result.model.members
    if members > 1:
        slowed = "" if run.slowdown is None else f", {run.slowdown:.2f} under one on cost"
        return f"{run.clean:.2f} of {members}", "members run, clean image", f"{run.attacked:.2f} attacked{slowed}"
    if times := result.cost.latency.get("torch"):
        single, batched = (times[batch].median_ms for batch in ("batch_1", "batch_64"))
        return f"{single:.3g} ms", "one image in torch", f"{batched:.3g} ms for 64"
    return "1", "model, no members", f"{count(result.cost.macs_dense)} MACs an image, zeros included"


def _reproduce(result: EvaluationResult) -> list[Block]:
    model, data = result.model, result.data
    settings = {attack.label: attack.settings for attack in result.attacks}
    terms = {
        "model": f"{model.path} ({model.kind}), {model.architecture}",
        "weights": f"sha256 {model.sha256[:16]}, {count(model.parameters)} parameters",
        "stopping rule": model.rule or "none",
        "checkpoint selected on": f"{model.selected_on} images" if model.selected_on else "not known",
        "extra training data": model.extra_data or "not known",
        "data": f"{data.name}, {data.split}, sha256 {data.sha256[:16]}",
        "precision": f"float32, attacks search in {result.search_dtype}",
        "seed of the attacks": result.seed,
        "latency": _latency(result),
    }
    quoted = {f"quoted {i}": settings_text(number) for i, number in enumerate(result.quoted, start=1)}
    return [
        terms,
        *provenance(result, result.versions),
        *([Details("Numbers of others", [quoted])] if quoted else []),
        "Beside this page: evaluation.json with every number and every image's outcome, evaluation.md, and the plots "
        "in figures/.",
        Details("Settings of the attacks, every default written out", [Code(settings_text(settings))]),
    ]


def _latency(result: EvaluationResult) -> str:
    """Write the latencies with the distance of their quartiles."""
    texts = [
        f"{engine}: {time.median_ms:.3g} ms \u00b1 {time.spread_ms:.2g} at batch {batch.removeprefix('batch_')}"
        for engine, times in result.cost.latency.items()
        for batch, time in times.items()
    ]
    return ", ".join(texts) or "not measured"


def _plots(result: EvaluationResult, examples: Examples | None) -> list[Plot]:
    """Return the plots in the order of the page, without those that such a model cannot have."""
    curve, members = result.security_curve, result.members
    attack = curve.attack if curve else ""
    curves = [(LOOKS["ensemble_dynamic"]._replace(label=f"under {attack}"), curve)] if curve else []
    has_distances = any(d is not None for _, distances in figures.in_threat_norm(result) for d in distances)
    shown = [
        Plot(
            "security_curve",
            "Accuracy against eps",
            f"{plural(curve.images if curve else 0, 'image')} at every radius, under {attack} alone. A sound attack "
            "reduces accuracy to chance and below.",
            (lambda: figures.security_curves(curves, result)) if curves else None,
        ),
        Plot(
            "distances",
            "Distance of the nearest adversarial image",
            "As found by attacks that look for the smallest change rather than one inside eps; an upper bound of the "
            "true distance. Images that are misclassified when clean are not drawn; the median counts them as 0.",
            (lambda: figures.minimum_distances(result)) if has_distances else None,
        ),
    ]
    if result.model.members > 1:
        caption = (
            f"Accuracy in percent on {plural(members.images if members else 0, 'image')}: clean ones, and those made "
            "against one member, classified by each. The diagonal is a member's own robust accuracy; values near it "
            "mean that one attack fools all."
        )
        draw = (lambda: figures.transfer(members)) if members else None
        shown.append(Plot("members", "Each member alone", caption, draw))
    if result.corruptions:
        shown.append(figures.corruptions_plot(result))
    if result.model.rule:
        shown.append(figures.members_run_plot(result))
    return [*shown, figures.examples_plot(examples, result)]
