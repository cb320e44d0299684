"""The sentences of an evaluation."""

from typing import Any

from sparsemble.report.formatting import count, duration, percent, round_percent, size, span


def headline(result: dict[str, Any]) -> tuple[str, str, str]:
    """Say in a sentence what came out; the middle part is the number."""
    worst, attacks = result["worst_case"], len(result["attacks"])
    low, high = worst["interval"]
    over = "under the one attack tried" if attacks == 1 else f"in the worst case over {attacks} attacks"
    between = f"95 % interval {percent(low)} to {percent(high)}"
    return (
        f"{result['name']} keeps ",
        f"{percent(worst['accuracy'])} %",
        f" accuracy {over} ({between}), {_modes(result)}.",
    )


def beside(result: dict[str, Any]) -> str:
    """Say what the headline stands next to."""
    label = strongest(result)
    attack = result["attacks"][label]
    sentences = [
        f"On clean images it is right in {percent(result['clean_accuracy'])} %; the strongest single attack, {label}, "
        f"leaves {percent(attack['robust_accuracy'])} %.",
        autoattack(result),
        "This is one model and one seed of the attacks.",
    ]
    if result["search"] != "float32":
        sentences.insert(2, f"Attacks searched in {result['search']}; what they found counts only if float32 agrees.")
    return " ".join(sentences)


def autoattack(result: dict[str, Any]) -> str:
    """Say how AutoAttack ran, and what its number may be compared with."""
    modes = {attack["mode"] for attack in result["attacks"].values()} - {None}
    if not modes:
        return "AutoAttack was not run, so no published number compares with this one."
    if "exact" not in modes:
        return (
            "AutoAttack ran in fast mode, a schedule of our own: published AutoAttack numbers do not compare with it."
        )
    variants = {
        attack["settings"].get("variant", "standard") for attack in result["attacks"].values() if attack["mode"]
    }
    standard = "the published parts" if "standard" in variants else f"the variant {' and '.join(sorted(variants))}"
    return f"AutoAttack ran in exact mode, {standard}."


def _modes(result: dict[str, Any]) -> str:
    modes = sorted({attack["mode"] for attack in result["attacks"].values()} - {None})
    return f"AutoAttack in {' and '.join(modes)} mode among them" if modes else "AutoAttack not among them"


def strongest(result: dict[str, Any]) -> str:
    """Return the label of the attack that leaves the least accuracy."""
    attacks = result["attacks"]
    return min(map(str, attacks), key=lambda label: sum(attacks[label]["outcomes"]))


def images(result: dict[str, Any]) -> str:
    """Say which images were attacked."""
    data = result["data"]
    if data["subset_seed"] is None:
        return f"All {data['images']} test images of {data['name']}, {data['classes']} classes."
    drawn = f"drawn with seed {data['subset_seed']}"
    return f"{data['images']} test images of {data['name']}, {drawn}, {data['classes']} classes."


def alarms(result: dict[str, Any]) -> list[str]:
    """Say what forbids to rely on the headline."""
    failed = [check["number"] for check in result["checks"] if check["status"] == "fail"]
    found = []
    if failed:
        one = len(failed) == 1
        found.append(
            f"{len(failed)} {'check' if one else 'checks'} of this evaluation failed: do not rely on the number below "
            f"before {'it is' if one else 'they are'} understood."
        )
    if result["target"]["selected_on"] == "test":
        found.append("This checkpoint was selected on test images: its accuracy on them is too high.")
    if result["unreliable"]:
        found.append("This evaluation is marked unreliable: stronger attacks are likely to find more.")
    return found


def facts(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the few numbers at the top of the page: value, what it is, more of it."""
    label, of_size = strongest(result), result["size"]
    passes = sum(result["passes"].values())
    return [
        (f"{percent(result['clean_accuracy'])} %", "clean accuracy", f"95 % interval {span(result['clean_interval'])}"),
        (f"{percent(result['attacks'][label]['robust_accuracy'])} %", "under the strongest single attack", label),
        (count(of_size["nonzeros"]), "non-zero weights", f"{round_percent(result['target']['sparsity'])} sparse"),
        (
            size(of_size["bytes"]),
            "on disk",
            f"{count(of_size['macs_nonzero'])} non-zero MACs an image, {size(of_size['peak_memory'])} in use for 64",
        ),
        _members(result),
        (count(passes), "passes of the attacks", f"{duration(result['seconds'])} on {result['device']} in all"),
    ]


def _members(result: dict[str, Any]) -> tuple[str, str, str]:
    """Return the members run by an ensemble, or the latency of a single model."""
    run, of = result["members_run"], result["target"]["members"]
    if of > 1:
        slowed = "" if run["slowdown"] is None else f", {run['slowdown']:.2f} under one on cost"
        return f"{run['clean']:.2f} of {of}", "members run, clean image", f"{run['attacked']:.2f} attacked{slowed}"
    if result["latency"]:
        one, many = (result["latency"][batch]["median_ms"] for batch in ("batch_1", "batch_64"))
        return f"{one:.3g} ms", "one image in torch", f"{many:.3g} ms for 64"
    dense = count(result["size"]["macs_dense"])
    return "1", "model, no members", f"{dense} MACs an image, zeros included"


def distance(value: float | None, result: dict[str, Any]) -> str:
    """Write a distance in the units of eps: 7.9/255 or 0.0312; null is that of images never broken."""
    if value is None:
        return "none found"
    return f"{255 * value:.3g}/255" if in_255ths(result) else f"{value:.3g}"


def in_255ths(result: dict[str, Any]) -> bool:
    """Say whether eps is written as n/255."""
    return str(result["threat"]["eps_text"]).endswith("/255")
