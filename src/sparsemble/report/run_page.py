"""The report of a run: its result table in the terminal, and one page with its Markdown twin."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table as TerminalTable

from sparsemble.core.results import (
    ROW_NAMES,
    EpochRecord,
    EvaluationResult,
    Examples,
    RunDetails,
    RunSummary,
    SelectionRecord,
    SubModelRecord,
    TrainingRecord,
)
from sparsemble.report import figures
from sparsemble.report.descriptions import alarms, premises
from sparsemble.report.formatting import count, duration, percent, plural, round_percent, sentence, size
from sparsemble.report.page import Block, Code, Details, Page, Plot, Section, Side, provenance, settings_text
from sparsemble.report.plot_style import LOOKS
from sparsemble.report.result_tables import (
    attack_table,
    beside_headline,
    checks_section,
    result_columns,
    terminal_notes,
)
from sparsemble.report.run_headline import HEADLINE_ROW, comparison, headline, useless
from sparsemble.report.table import Column, Table
from sparsemble.report.tradeoff_plot import TRADEOFF, robustness_against_size


def write_run_report(summary: RunSummary, details: RunDetails, examples: Examples | None, folder: Path) -> None:
    """Write `index.html`, `report.md`, `summary.json`, `details.json` and `figures/*.svg`.

    Args:
        summary: the rows of the run and how they were made.
        details: layers, masks, sub-models and trainings; what is missing is left out of the page.
        examples: images with adversarial ones made against the dynamic ensemble; None: none are shown.
        folder: made if it is missing.
    """
    result = summary.row(HEADLINE_ROW)
    sections: list[Section] = [Section("Results", [_results_table(summary)])]
    if details.pool:
        sections.append(Section("Sub-models", [_pool_table(details.pool, summary.selection)]))
    measured = [training for training in details.trainings if any(epoch.held_out for epoch in training.epochs)]
    if measured:
        every = Details("Every epoch", [Side([epoch_table(training) for training in measured])])
        sections.append(Section("Trainings", [training_table(measured), every]))
    sections += [
        Section("The ensemble", [_ensemble_terms(summary), _stopping_text(summary)]),
        Section("Attacks on the dynamic ensemble", [attack_table(result)]),
        checks_section(result),
        Section("How to reproduce this run", _reproduce(summary)),
    ]
    page = Page(
        title=f"{summary.name}, seed {summary.seed}",
        kind="run",
        kicker=[summary.name, f"seed {summary.seed}"],
        alarms=[*useless(summary), *alarms(result)],
        headline=headline(summary),
        comparison=comparison(summary),
        aside=beside_headline(result, len(summary.rows)),
        key_figures=_key_figures(summary),
        sections=sections,
        plots=_plots(summary, details, examples),
    )
    page.write(folder, "report.md")
    summary.save(folder / "summary.json")
    details.save(folder / "details.json")


def run_table(summary: RunSummary) -> TerminalTable:
    """Return the table that a run ends with, for a terminal of 80 columns or more."""
    result = summary.row(HEADLINE_ROW)
    notes = terminal_notes(result, premises(result, len(summary.rows)), useless(summary))
    return _results_table(summary).terminal("".join(headline(summary)), notes)


def _key_figures(summary: RunSummary) -> list[tuple[str, str, str]]:
    ensemble, dense = summary.row(HEADLINE_ROW), summary.row("dense")
    run, number = ensemble.members_run, len(summary.selection.ensemble)

    def seconds(row: EvaluationResult) -> str:
        return "unknown" if row.cost.training_seconds is None else duration(row.cost.training_seconds)

    clean, nonzeros, cost = dense.clean_accuracy, dense.model.nonzeros, dense.cost
    costliest = f"{run.attacked:.2f} under the costliest attack tried"
    return [
        (f"{percent(ensemble.clean_accuracy)} %", "clean accuracy", f"dense parent {percent(clean)} %"),
        (count(ensemble.model.nonzeros), "weights kept", f"dense parent {count(nonzeros)}"),
        (size(ensemble.cost.bytes), "on disk", f"dense parent {size(cost.bytes)}"),
        (f"{run.clean:.2f} of {number}", "members run, clean image", costliest),
        (count(ensemble.cost.macs_nonzero), "non-zero MACs, clean image", f"dense parent {count(cost.macs_nonzero)}"),
        (seconds(ensemble), "of one core to train", f"dense parent {seconds(dense)}"),
    ]


def _results_table(summary: RunSummary) -> Table[EvaluationResult]:
    name: Column[EvaluationResult] = Column(
        "",
        lambda row: ROW_NAMES[row.name].partition(" (")[0],
        left=True,
        note=lambda row: ROW_NAMES[row.name].partition(" (")[2].removesuffix(")"),
    )
    return Table(
        result_columns(summary.rows, name),
        summary.rows,
        "An image counts as correct in the worst case if the deployed prediction is correct on the clean image and on "
        "every adversarial image made for its row. Sparsity is the fraction of the dense parent's prunable weights "
        "that are 0, over all members together, recounted from the weights that were evaluated. Training counts "
        "everything a row was made from, attacks and discarded sub-models included. Latency is measured on clean "
        "images; torch gains nothing from zeros.",
        colour=lambda row: f"--row-{row.name}",
        strong=lambda row: row.name == HEADLINE_ROW,
        rule_above=lambda row: row.name == "ensemble_static",
    )


def _pool_table(pool: Sequence[SubModelRecord], selection: SelectionRecord) -> Table[SubModelRecord]:
    columns: list[Column[SubModelRecord]] = [
        Column("sub-model", lambda row: row.name, left=True),
        Column("sparsity, %", lambda row: percent(1 - row.nonzeros / row.weights), "weights that are 0"),
        Column("MACs saved, %", lambda row: percent(1 - row.macs_nonzero / row.macs_dense), "by zeros"),
        Column("weights", lambda row: count(row.nonzeros), "that are not 0"),
        Column("dead channels", lambda row: count(row.dead_channels), "that nothing reads or that are always 0"),
        Column("dead weights", lambda row: count(row.dead_weights), "that served only dead channels; removed as well"),
        Column("clean before, %", lambda row: percent(row.before_finetuning.clean)),
        Column("robust before, %", lambda row: percent(row.before_finetuning.robust)),
        Column("clean after, %", lambda row: percent(row.after_finetuning.clean)),
        Column("robust after, %", lambda row: percent(row.after_finetuning.robust)),
    ]
    members, at_chance = selection.ensemble, selection.at_chance
    chance = f" No better than chance on held-out images: {', '.join(at_chance)}." if at_chance else ""
    return Table(
        columns,
        pool,
        "In bold: members of the ensemble. Accuracy on held-out images before and after fine-tuning, clean and under "
        f"the attack by which epochs are chosen.{chance}",
        colour=lambda row: "--row-ensemble_dynamic" if row.name in members else "",
        strong=lambda row: row.name in members,
    )


def training_table(trainings: Sequence[TrainingRecord]) -> Table[TrainingRecord]:
    """Return a row for each training; of each, at least one epoch was measured."""

    def best(training: TrainingRecord) -> EpochRecord:
        return max(training.epochs, key=lambda epoch: (epoch.held_out.robust if epoch.held_out else -1, epoch.epoch))

    columns: list[Column[TrainingRecord]] = [
        Column("training", lambda row: LOOKS[row.name].label, left=True),
        Column("epochs", lambda row: str(len(row.epochs)), "that were kept"),
        Column("first loss", lambda row: f"{row.epochs[0].loss:.3f}", "on training images, mean of the first epoch"),
        Column("last loss", lambda row: f"{row.epochs[-1].loss:.3f}", "on training images, mean of the last epoch"),
        Column("most robust epoch", lambda row: str(best(row).epoch), "on held-out images; the later of equal ones"),
        Column("held-out clean, %", lambda row: _held_out(best(row))[0], "in that epoch"),
        Column("held-out robust, %", lambda row: _held_out(best(row))[1], "in that epoch"),
        Column("rollbacks", lambda row: str(len(_failures(row))), "how often training went back to an earlier epoch"),
    ]
    return Table(
        columns, trainings, colour=lambda row: f"--row-{'ensemble_dynamic' if row.name == 'ensemble' else row.name}"
    )


def epoch_table(training: TrainingRecord) -> Table[EpochRecord]:
    """Return every epoch of a training; accuracies are empty where nothing was measured."""
    columns: list[Column[EpochRecord]] = [
        Column("epoch", lambda row: str(row.epoch)),
        Column("loss", lambda row: f"{row.loss:.3f}"),
        Column("held-out clean, %", lambda row: _held_out(row)[0]),
        Column("held-out robust, %", lambda row: _held_out(row)[1]),
        Column("learning rate", lambda row: f"{row.learning_rate:.3g}"),
    ]
    return Table(columns, training.epochs, sentence(LOOKS[training.name].label))


def _held_out(epoch: EpochRecord) -> tuple[str, str]:
    return (percent(epoch.held_out.clean), percent(epoch.held_out.robust)) if epoch.held_out else ("", "")


def _ensemble_terms(summary: RunSummary) -> dict[str, object]:
    selection, stopping = summary.selection, summary.stopping
    threshold = "" if selection.threshold is None else f", threshold {selection.threshold:g}"
    settings = [
        f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in stopping.settings.items()
    ]
    return {
        "members in running order": ", ".join(stopping.order),
        "robust diversity": f"{selection.robust_diversity:.2f}{threshold}",
        "why these members": sentence(selection.reason),
        **({"at chance": _at_chance(selection)} if selection.at_chance else {}),
        "stopping rule": ", ".join([stopping.rule, *settings]),
    }


def _at_chance(selection: SelectionRecord) -> str:
    """Name the sub-models that are no better than chance, and the members among them."""
    members = [name for name in selection.at_chance if name in selection.ensemble]
    left_out = [name for name in selection.at_chance if name not in members]
    parts = [f"left out: {', '.join(left_out)}"] if left_out else []
    return "; ".join([*parts, *([f"members all the same: {', '.join(members)}"] if members else [])])


def _stopping_text(summary: RunSummary) -> str:
    """Describe what the stopping rule does on the images it was calibrated on, and how sensitive it is."""
    stopping, outcome = summary.stopping, summary.stopping.outcome
    text = (
        f"The stopping rule was calibrated on {plural(stopping.images, 'held-out image')}: there it runs "
        f"{outcome.members_run:.2f} members on clean images and {outcome.attacked_members_run:.2f} under attack, and "
        f"keeps {percent(outcome.worst_case)} % in the worst case (all members: "
        f"{percent(stopping.full_ensemble.worst_case)} %)."
    )
    changed = [record.outcome for record in stopping.sensitivity]
    if not changed:
        return text
    runs, worst = [outcome.members_run for outcome in changed], [outcome.worst_case for outcome in changed]
    return (
        f"{text} With each constant a tenth smaller or larger (a count: by one) it would run {min(runs):.2f} to "
        f"{max(runs):.2f} members there, at {percent(min(worst))} to {percent(max(worst))} %."
    )


def _reproduce(summary: RunSummary) -> list[Block]:
    return [
        *provenance(summary, summary.versions),
        "Beside this page: summary.json with every number and every image's outcome, details.json with every sub-model "
        "and epoch, report.md, and the plots in figures/.",
        Details("Recipe, every default written out, as --set takes it", [Code(settings_text(summary.recipe))]),
    ]


def _plots(summary: RunSummary, details: RunDetails, examples: Examples | None) -> list[Plot]:
    result = summary.row(HEADLINE_ROW)
    curves = [(LOOKS[row.name], row.security_curve) for row in summary.rows if row.security_curve]
    images = curves[0][1].images if curves else 0
    nonzero_fraction = 1 - summary.row("best_member").model.sparsity
    random_overlap = round_percent(nonzero_fraction / (2 - nonzero_fraction))
    layers, overlap, trainings = details.layers, details.overlap, details.trainings
    members = summary.selection.ensemble
    return [
        Plot("tradeoff", *TRADEOFF, lambda: robustness_against_size(summary.rows), wide=True),
        Plot(
            "security_curve",
            "Accuracy against eps",
            f"The same {images} test images at every radius. A sound attack reduces every row to chance.",
            (lambda: figures.security_curves(curves, result)) if curves else None,
        ),
        figures.members_run_plot(result),
        figures.examples_plot(examples, result, details.classes),
        Plot(
            "layers",
            "Sparsity of each layer",
            "Each layer with its number of weights; means over the sub-models of a score. The dashed line is the whole "
            "network. The paper's Figure 5.",
            (lambda: figures.layer_sparsity(layers)) if layers else None,
        ),
        Plot(
            "overlap",
            "Overlap of the masks",
            "Jaccard overlap, in percent, of the weights that two sub-models keep; the members of the ensemble in "
            f"colour. Random masks of the best sub-model's size would overlap by {random_overlap}.",
            (lambda: figures.mask_overlap(overlap, members)) if overlap else None,
        ),
        Plot(
            "training",
            "Training",
            f"Accuracy on held-out images, training loss and learning rate. {rollbacks(trainings)}".strip(),
            (lambda: figures.training_curves(trainings)) if trainings else None,
            wide=True,
        ),
    ]


def _failures(training: TrainingRecord) -> list[str]:
    return [text for e in training.epochs for text in (*e.rolled_back, *([e.stopped] if e.stopped else []))]


def rollbacks(trainings: Sequence[TrainingRecord]) -> str:
    """Describe where trainings failed and went back to an earlier epoch; empty if none did."""
    failed = [
        sentence(f"{LOOKS[training.name].label}: {text}") for training in trainings for text in _failures(training)
    ]
    return " ".join(["Dotted lines: training went back.", *failed]) if failed else ""
