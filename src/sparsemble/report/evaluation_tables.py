"""The tables of an evaluation, for terminals, Markdown and the page."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from sparsemble.report.evaluation_text import alarms, autoattack, beside, distance, headline, images
from sparsemble.report.formatting import aim, count, duration, percent, span, threat, verdict
from sparsemble.report.tables import markdown_table, ordered_checks

KINDS = {"clean": "dense", "attack": "harp", "ensemble attack": "ensemble_static", "worst case": "ensemble_dynamic"}
"""The row of a run's report whose colour a line takes."""
TITLES = {
    "accuracy": ("accuracy, %", "share of all images answered rightly"),
    "interval": ("95 % interval", "Wilson interval of the accuracy"),
    "forward": ("forward passes", "images sent forward through a network by the attack"),
    "backward": ("backward passes", "images sent backward"),
    "seconds": ("time", "that the attack took"),
    "members": ("members", "mean number run on the attacked images"),
    "distance": ("median distance", "of the nearest adversarial image found; minimum-norm attacks only"),
}


class Line(NamedTuple):
    """A line of the table of attacks."""

    label: str
    kind: str
    """clean, attack, ensemble attack or worst case."""
    note: str
    accuracy: float
    interval: Sequence[float]
    cells: dict[str, str]
    """Text by column; a column that no line has is left out."""


def lines(result: dict[str, Any]) -> list[Line]:
    """Return clean images, the attacks from the weakest to the strongest, and the worst case."""
    clean, worst = result["clean_accuracy"], result["worst_case"]
    run = {"members": f"{result['members_run']['clean']:.2f}"} if result["target"]["members"] > 1 else {}
    attacks = sorted(result["attacks"].items(), key=lambda item: -sum(item[1]["outcomes"]))
    totals = _cost(result["passes"], sum(attack["seconds"] for attack in result["attacks"].values()))
    return [
        Line("no attack", "clean", "", clean, result["clean_interval"], _share(clean, result["clean_interval"]) | run),
        *[_line(label, attack, result) for label, attack in attacks],
        Line(
            "worst case",
            "worst case",
            "right when clean and under every attack",
            worst["accuracy"],
            worst["interval"],
            _share(worst["accuracy"], worst["interval"]) | totals,
        ),
    ]


def columns(of_table: list[Line]) -> dict[str, tuple[str, str]]:
    """Return the columns that any line has: title and meaning, in order."""
    return {key: titles for key, titles in TITLES.items() if any(key in line.cells for line in of_table)}


def _line(label: str, attack: dict[str, Any], result: dict[str, Any]) -> Line:
    cells = _share(attack["robust_accuracy"], attack["interval"]) | _cost(attack["passes"], attack["seconds"])
    if result["target"]["members"] > 1:
        cells["members"] = f"{sum(attack['members_run']) / len(attack['members_run']):.2f}"
    if "median_distance" in attack:
        cells["distance"] = distance(attack["median_distance"], result)
    return Line(label, attack["kind"], note(label, attack), attack["robust_accuracy"], attack["interval"], cells)


def note(label: str, attack: dict[str, Any]) -> str:
    """Say in a few words what an attack is."""
    words = [f"{attack['mode']} mode"] if attack["mode"] else []
    if attack["kind"] == "ensemble attack":
        words.append(f"against {aim(label)}")
    if attack.get("parts"):
        broken = {part: images for part, images in attack["parts"].items() if images}
        words.append("broken by " + ", ".join(f"{part} {images}" for part, images in broken.items()) if broken else "")
    return "; ".join(word for word in words if word)


def _share(accuracy: float, interval: Sequence[float]) -> dict[str, str]:
    return {"accuracy": percent(accuracy), "interval": span(interval)}


def _cost(passes: dict[str, int], seconds: float) -> dict[str, str]:
    time = duration(seconds) if seconds >= 0.5 else "< 1 s"
    return {way: count(passes[way]) for way in ("forward", "backward")} | {"seconds": time}


def evaluation_table(result: dict[str, Any]) -> Table:
    """Return the table that an evaluation ends with, for a terminal of 80 columns or more."""
    table = Table(
        title=Text("".join(headline(result))),
        caption=_terminal_note(result),
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
        title_style="bold",
        caption_style="",
    )
    of_table = lines(result)
    shown = {"seconds": "time", "members": "members", "distance": "distance"}
    shown = {key: title for key, title in shown.items() if key in columns(of_table)}
    table.add_column("", overflow="fold")
    for title in ("accuracy %", "passes", *shown.values()):
        table.add_column(title, justify="right", no_wrap=True)
    for i, line in enumerate(of_table):
        passes = _passes(line, result)
        low, high = (100 * bound for bound in line.interval)
        table.add_row(
            Text(line.label),
            f"{percent(line.accuracy)} ({low:.0f}\u2013{high:.0f})",
            count(sum(passes.values())) if passes else "",
            *[line.cells.get(key, "") for key in shown],
            style="bold" if line.kind == "worst case" else None,
            end_section=i in (0, len(of_table) - 2),
        )
    return table


def _passes(line: Line, result: dict[str, Any]) -> dict[str, int]:
    if line.kind == "clean":
        return {}
    passes: dict[str, int] = (result if line.kind == "worst case" else result["attacks"][line.label])["passes"]
    return passes


def _terminal_note(result: dict[str, Any]) -> Text:
    """Say which checks failed or were waived, and on what the numbers stand."""
    text = Text(f"Checks: {verdict(result)}.")
    for alarm in alarms(result):
        text.append(f"\n{alarm}", style="bold red")
    for check in ordered_checks(result):
        if check["status"] == "fail":
            text.append(f"\nfailed: {check['number']} {check['name']}: {check['detail']}", style="bold red")
    waived = [f"{check['number']} {check['name']}" for check in result["checks"] if check["status"] == "waived"]
    if waived:
        text.append("\nwaived: " + "; ".join(waived), style="yellow")
    return text.append(f"\n{autoattack(result)} {threat(result)} {images(result)}", style="dim")


def markdown(result: dict[str, Any]) -> str:
    """Return the evaluation as Markdown."""
    opened = [check for check in ordered_checks(result) if check["status"] != "pass"]
    of_table = lines(result)
    titles = columns(of_table)
    rows = [[line.label, line.note, *[line.cells.get(key, "") for key in titles]] for line in of_table]
    checks = [[str(c["number"]), c["name"], c["status"], c["detail"]] for c in ordered_checks(result)]
    text = [f"# Evaluation of {result['name']}", "", f"**{''.join(headline(result))}**", "", beside(result), ""]
    text += [f"{threat(result)} Knowledge: {result['threat']['knowledge']}. {images(result)}", ""]
    text += [f"Checks: {verdict(result)}.", "", *[f"- **{alarm}**" for alarm in alarms(result)]]
    text += [f"- **{c['status']}**: {c['number']} {c['name']}: {c['detail']}" for c in opened]
    text += ["", "## Attacks", ""]
    text += markdown_table(["attack", "what it is", *[title for title, _ in titles.values()]], rows, 2)
    text += ["", "## Checks", "", *markdown_table(["number", "check", "verdict", "detail"], checks, 4)]
    text += ["", "## How it was made", "", f"    {result['command']}", ""]
    text += [f"- {name}: {value}" for name, value in made(result).items()]
    return "\n".join(text) + "\n"


def made(result: dict[str, Any]) -> dict[str, str]:
    """Return what the numbers were made with."""
    target, data = result["target"], result["data"]
    return {
        "target": f"{target['path']} ({target['kind']})",
        "weights": f"sha256 {target['sha256'][:16]}, {count(target['parameters'])} parameters",
        "stopping rule": target["stopping"] or "none",
        "checkpoint selected on": f"{target['selected_on']} images" if target["selected_on"] else "not known",
        "data": f"{data['name']}, {data['split']}, sha256 {data['sha256'][:16]}",
        "precision": f"{result['dtype']}, attacks search in {result['search']}",
        "seed of the attacks": str(result["seeds"]["attacks"]),
        "latency": latency(result),
        **{str(key).replace("_", " "): str(value) for key, value in result["machine"].items()},
        **result["versions"],
        "source": result["source"] or "unknown",
    }


def latency(result: dict[str, Any]) -> str:
    """Write the latency in torch, with its spread."""
    if not result["latency"]:
        return "not measured"
    of = {batch.removeprefix("batch_"): times for batch, times in result["latency"].items()}
    told = [f"{times['median_ms']:.3g} ms \u00b1 {times['spread_ms']:.2g} at batch {b}" for b, times in of.items()]
    return ", ".join(told)
