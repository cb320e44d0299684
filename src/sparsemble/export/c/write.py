"""An ensemble as one C99 file and a header: members, combiner and stopping rule, without allocation."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, final

from sparsemble import __version__
from sparsemble.core.errors import InputError
from sparsemble.export.c.literals import float_literal, string_literal
from sparsemble.export.c.member import Member, convert_member
from sparsemble.runtime.format.packed_ensemble import PackedEnsemble

SOURCE, HEADER = "ensemble.c", "ensemble.h"
C_FILES = ("layers.c", "elementwise.c", "decision.c")
"""Each is divided into sections by lines `//@ name`; those that are needed are written."""
MAX_FLASH_KB = 2048
"""KB of constants that are written unless told otherwise: as much flash as large microcontrollers have."""
RULE_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "never": ("never",),
    "at_once": ("never",),
    "confidence": ("combined", "confidence"),
    "first_passage": ("combined", "hazard", "first_passage"),
    "die": ("combined", "hazard", "die"),
    "agreement": ("combined", "agreement"),
}
"""Sections of `decision.c` by stopping rule."""
COMBINERS: Mapping[str, str] = {
    "mean_probability": "mean_probability",
    "mean_logit": "mean_logit",
    "maximum": "maximum",
    "soft_vote": "mean_probability",
}
"""Section of `decision.c` by combiner."""


@final
@dataclass(frozen=True, kw_only=True)
class CExport:
    """What was written, and what it needs."""

    source: str
    """Path of the C file; the header is beside it."""
    flash: int
    """Bytes of weights, other constants and names; code and the geometry of layers come on top, a few KB."""
    ram: int
    """Bytes of static memory."""
    members: int
    """Members that may run."""
    pixels: str
    """What `predict` reads."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


def write_c(ensemble: PackedEnsemble, folder: Path, *, max_flash_kb: int = MAX_FLASH_KB) -> CExport:
    """Write an ensemble as `ensemble.c` and `ensemble.h`.

    Args:
        ensemble: with rounded weights; the values that C reads are equal to them.
        folder: created if it does not exist.
        max_flash_kb: KB (of 1,024 bytes) that weights and other constants may take, 1 or more.

    Returns:
        Where the files are, and the memory that they need.

    Raises:
        InputError: more constants than `max_flash_kb`, or an operation, combiner or rule that has no C.
    """
    if max_flash_kb < 1:
        raise InputError(f"{max_flash_kb} KB of flash hold nothing; 1 or more are needed")
    for kind, settings, known in (
        ("combiner", ensemble.combiner, COMBINERS),
        ("stopping rule", ensemble.rule, RULE_SECTIONS),
    ):
        if settings["name"] not in known:
            raise InputError(f'{kind} "{settings["name"]}" cannot be written as C; known are {", ".join(known)}')
    # A rule that stops at once leaves no use for further members.
    networks = ensemble.members[:1] if ensemble.rule["name"] == "at_once" else ensemble.members
    members = [convert_member(network, number) for number, network in enumerate(networks, start=1)]
    names = sum(len(name.encode()) + 1 for name in ensemble.classes)
    flash = names + sum(array.size for member in members for array in member.arrays)
    if flash > 1024 * max_flash_kb:
        needed = -(-flash // 1024)
        raise InputError(
            f"the constants of this ensemble take {needed:,} KB of flash, more than the limit of {max_flash_kb:,} KB; "
            f"--max-flash {needed} allows it, higher sparsity or --values int8 makes it smaller"
        )
    variables = _variables(ensemble, members)
    made = CExport(
        source=str(folder / SOURCE),
        flash=flash,
        ram=4 * sum(size for _, size in variables),
        members=len(members),
        pixels=describe_pixels(ensemble),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HEADER).write_text(_header(ensemble, made), "ascii")
    (folder / SOURCE).write_text(_source(ensemble, members, variables), "ascii")
    return made


def describe_pixels(ensemble: PackedEnsemble) -> str:
    """Return what `predict` reads, and what C does not do to image files."""
    channels, height, width = ensemble.image
    colours = {1: "one byte of grey a pixel", 3: "a pixel's red, green and blue side by side"}
    layout = colours.get(channels, f"a pixel's {channels} channels side by side")
    made = ensemble.preprocessing
    prepared = f"an image as in training: {made}; C does none of this" if made else "an image of the training data"
    return f"{height} x {width} x {channels} bytes, rows from the top, {layout}, 0 to 255: {prepared}"


def _variables(ensemble: PackedEnsemble, members: list[Member]) -> list[tuple[str, int]]:
    """Return declarations of the static variables, and how many numbers of 4 bytes they hold."""
    classes, sections = len(ensemble.classes), RULE_SECTIONS[ensemble.rule["name"]]
    memory, plane = (max(sizes) for sizes in zip(*((m.arena.size, m.largest_plane) for m in members), strict=True))
    variables = [
        (f"float memory[{memory}]", memory),
        (f"float logits[{len(members)}][{classes}]", len(members) * classes),
        ("int run, used", 2),
    ]
    if plane:
        variables.append((f"union {{ float floats[{plane}]; int32_t integers[{plane}]; }} sums", plane))
    if "combined" in sections:
        variables.append((f"float combined[{classes}]", classes))
    if "hazard" in sections:
        variables.append((f"float log_before[{classes}]", classes))
    if "die" in sections:
        variables.append(("float survival, largest_stop_probability", 2))
    return variables


def _header(ensemble: PackedEnsemble, made: CExport) -> str:
    channels, height, width = ensemble.image
    return f"""/* Written by sparsemble {__version__}.

   Memory: {made.ram} bytes of RAM, all of it static, and less than 1 KB of stack;
   {made.flash} bytes of flash for constants, and a few KB for code, expf and logf.

   Pixels: {made.pixels}.

   Compile with: cc -O2 -std=c99 -c {SOURCE}; link with -lm. One call at a time: results lie in static memory. */
#ifndef SPARSEMBLE_ENSEMBLE_H
#define SPARSEMBLE_ENSEMBLE_H

#include <stdint.h>

#define PREDICT_CHANNELS {channels}
#define PREDICT_HEIGHT {height}
#define PREDICT_WIDTH {width}
#define PREDICT_CLASSES {len(ensemble.classes)}
#define PREDICT_MEMBERS {made.members}

#ifdef __cplusplus
extern "C" {{
#endif

/* Names of the classes, in UTF-8. */
extern const char *const class_names[PREDICT_CLASSES];

/* Returns the label, 0 to PREDICT_CLASSES - 1, and writes the PREDICT_CLASSES probabilities. */
int predict(const uint8_t *pixels, float *probabilities);

/* Members that the last call of predict ran, and how many of them its answer is from. */
int members_run(void);
int answered_with(void);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _source(ensemble: PackedEnsemble, members: list[Member], variables: list[tuple[str, int]]) -> str:
    """Return the C file."""
    support = _sections()
    rule = RULE_SECTIONS[ensemble.rule["name"]]
    operations = set().union(*(member.sections for member in members))
    decision = {"log_softmax", *rule, COMBINERS[ensemble.combiner["name"]]}
    names = ",\n    ".join(map(string_literal, ensemble.classes))
    return "\n".join(
        [
            f'#include "{HEADER}"\n\n#include <math.h>\n#include <string.h>\n',
            "".join(f"static {declaration};\n" for declaration, _ in variables),
            f"const char *const class_names[PREDICT_CLASSES] = {{\n    {names}}};\n",
            *(text for name, text in support.items() if name in operations),
            *map(str, members),
            "".join(_constants(ensemble)),
            *(text for name, text in support.items() if name in decision),
            _run_member(ensemble, len(members)),
            support["predict"],
        ]
    )


def _run_member(ensemble: PackedEnsemble, members: int) -> str:
    """Return the function that computes a member's logits, as log-probabilities if these are what is combined."""
    lines = [f"if (m == {i})\n        result = member{i + 1}(pixels);" for i in range(members)]
    name = ensemble.combiner["name"]
    if name == "soft_vote":
        temperature = float_literal(ensemble.combiner.get("temperature", 0.5))
        lines.append(f"for (k = 0; k < PREDICT_CLASSES; k++)\n        logits[m][k] = load(result, k) / {temperature};")
    else:
        lines.append("for (k = 0; k < PREDICT_CLASSES; k++)\n        logits[m][k] = load(result, k);")
    if name != "mean_logit":
        lines.append("log_softmax(logits[m], logits[m]);")
    body = "\n    ".join(["tensor result = {0, 0, 0};", "int32_t k;", *lines])
    return f"static void run_member(int m, const uint8_t *pixels)\n{{\n    {body}\n}}\n"


def _constants(ensemble: PackedEnsemble) -> list[str]:
    """Return the settings of the stopping rule."""
    lines = []
    for key, value in ensemble.rule.items():
        if key == "votes":
            # Votes are whole numbers; more than there are members are never reached.
            lines.append(f"#define RULE_VOTES {max(0, min(math.ceil(value), len(ensemble.members) + 1))}\n")
        elif key != "name":
            lines.append(f"#define RULE_{key.upper()} {float_literal(value)}\n")
    return lines


def _sections() -> dict[str, str]:
    """Return the sections of the C files by their names, in their order."""
    folder = files("sparsemble.export.c")
    text = "".join(folder.joinpath(name).read_text("ascii") for name in C_FILES)
    parts = (part.partition("\n") for part in text.split("//@ ")[1:])
    return {name: body for name, _, body in parts}
