"""`sparsemble evaluate`: from words to a target, attacks and a folder."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from sparsemble.attacks.attack import Attack, attacks
from sparsemble.attacks.black_box.transfer import Transfer
from sparsemble.attacks.ensemble.ensemble_attack import EnsembleAttack, ensemble_attacks
from sparsemble.core.artifacts import only_run_in, read_json
from sparsemble.core.config import from_dict, parse_toml
from sparsemble.core.errors import InputError
from sparsemble.core.registry import build_from, to_dict
from sparsemble.core.threat import ThreatModel
from sparsemble.evaluation.robustness import weights_hash
from sparsemble.pipeline.evaluate_target import Settings, assess
from sparsemble.pipeline.loaded_model import LoadedModel, load_target, resolve_data
from sparsemble.pipeline.metrics import Tell
from sparsemble.pipeline.progress import time_left
from sparsemble.pipeline.run import check_device
from sparsemble.pipeline.sanity_attacks import TRANSFERRED
from sparsemble.pipeline.stage import dataset

DEFAULT_EPS = {"linf": "8/255", "l2": 0.5}


@final
@dataclass(frozen=True, kw_only=True)
class Asked:
    """The words of the command line."""

    target: str
    row: str = ""
    model: str = ""
    data: str = ""
    attacks: str = "autoattack"
    transfer: str = ""
    eps: str = ""
    norm: str = ""
    images: int = 0
    seed: int = 0
    adaptive: bool = True
    search: str = "float32"
    shard: int = 100
    out: Path | None = None
    device: str = "auto"


@final
@dataclass(frozen=True)
class Plan:
    """What will be done."""

    target: LoadedModel
    settings: Settings
    folder: Path


def prepare(asked: Asked) -> Plan:
    """Load the target and settle data, threat model and attacks; nothing is attacked yet.

    Raises:
        InputError: anything wrong in the words.
    """
    device = check_device(asked.device)
    if asked.images < 0 or asked.shard < 1:
        raise InputError(f"images = {asked.images} must be 0 (all) or more, shard = {asked.shard} 1 or more")
    if asked.search not in ("float32", "bfloat16"):
        raise InputError(f'search = "{asked.search}" is not known; use float32 or bfloat16')
    chosen = parse_attacks(asked.attacks)
    given = resolve_data(asked.data) if asked.data else None
    loaded = dataset(given) if given else None
    target = load_target(asked.target, row=asked.row, model=asked.model, data=loaded, device=device)
    data = given or target.data
    if data is None:
        raise InputError(f"{asked.target} does not say which images it is for; name them, as in --data cifar10")
    if asked.transfer:
        source = load_target(asked.transfer, model=asked.model, data=dataset(data), device=device)
        chosen = (*chosen, Transfer(attack=TRANSFERRED, source=source.model, label="transfer"))
    settings = Settings(
        data=data,
        threat=_threat(asked, target),
        attacks=chosen,
        adaptive=asked.adaptive,
        images=asked.images,
        seed=asked.seed,
        shard=asked.shard,
        search=asked.search,
        device=device,
    )
    return Plan(target, settings, asked.out or _place(asked, target, settings))


def run(plan: Plan, command: str, console: Console) -> dict[str, Any]:
    """Carry a plan out and leave the result, the page and the ledger in its folder."""
    from sparsemble.report import write_evaluation

    _check_folder(plan)
    with only_run_in(plan.folder), _bar(console, plan.target.name) as tell:
        result, examples = assess(plan.target, plan.settings, plan.folder, command, tell)
        write_evaluation(result, {name: np.asarray(value) for name, value in examples.items()}, plan.folder)
    return result


def _check_folder(plan: Plan) -> None:
    """Refuse a folder that holds the result of another model.

    Raises:
        InputError: the weights differ.
    """
    there = plan.folder / "evaluation.json"
    if there.is_file():
        old, new = read_json(there).get("target", {}).get("sha256"), weights_hash(plan.target.model)
        if old != new:
            raise InputError(
                f"{there} is the result of another model (sha256 {str(old)[:8]}, this one has {new[:8]}); choose "
                "another folder with --out"
            )


def parse_attacks(text: str) -> tuple[Attack | EnsembleAttack, ...]:
    """Read `pgd,file.py:Mine` or a list in TOML such as `[{name = "pgd", steps = 100}]`.

    Raises:
        InputError: an unknown attack or setting.
    """
    specs = (
        parse_toml(f"attacks = {text}", "--attacks")["attacks"] if text.lstrip().startswith("[") else text.split(",")
    )
    registries = (attacks, ensemble_attacks)
    return tuple(build_from(registries, s.strip() if isinstance(s, str) else s, "--attacks") for s in specs)


def _threat(asked: Asked, target: LoadedModel) -> ThreatModel:
    """Return the threat model asked for; what is not said comes from the target, or is the usual one."""
    norm = asked.norm or (target.threat.norm if target.threat else "linf")
    eps: Any = asked.eps
    if not eps:
        same = target.threat is not None and target.threat.norm == norm
        eps = target.threat.eps if same and target.threat else DEFAULT_EPS.get(norm, 0.0)
    elif "/" not in eps:
        try:
            eps = float(eps)
        except ValueError:
            raise InputError(f'--eps "{eps}" is not a number; write it as 8/255 or 0.031') from None
    return from_dict(ThreatModel, {"norm": norm, "eps": eps})


def _place(asked: Asked, target: LoadedModel, settings: Settings) -> Path:
    """Return the folder of this question, so that asking it again goes on there."""
    job = json.dumps(
        [to_dict(settings), asked.target, asked.row, asked.model, asked.transfer], sort_keys=True, default=str
    )
    name = re.sub(r"[^\w.-]+", "-", target.name)
    return Path("evaluations") / f"{name}-{hashlib.sha256(job.encode()).hexdigest()[:8]}"


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Tell]:
    """Show one bar with the time left; plain where output is no terminal."""
    import time

    began = time.perf_counter()
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[text]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task(f"evaluate {title}", total=1.0, text="")
    said = ""

    def tell(share: float, text: str) -> None:
        nonlocal said
        left = time_left(began, share)
        bar.update(task, completed=share, text=f"{left}, {text}" if left else text)
        what = text.partition(":")[0]
        if not console.is_terminal and what != said:
            said = what
            console.print(f"[{100 * share:3.0f}%] {what}{', ' + left if left else ''}", markup=False, highlight=False)

    with bar:
        yield tell
