"""`sparsemble evaluate` and `sparsemble compare`: from options to a model, a job and a folder."""

import hashlib
import io
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

from rich.console import Console

from sparsemble.api.evaluation import RESULT
from sparsemble.attacks.attack import Access, attacks
from sparsemble.attacks.black_box.transfer import Transfer
from sparsemble.attacks.ensemble.ensemble_attack import ensemble_attacks
from sparsemble.attacks.patch import OUTSIDE
from sparsemble.core.artifacts import only_run_in, read_json, write_json
from sparsemble.core.config import from_dict, parse_toml
from sparsemble.core.device import choose_device
from sparsemble.core.errors import InputError
from sparsemble.core.registry import build_from, to_dict
from sparsemble.core.results import CheckResult, ComparisonResult, DataRecord, EvaluationResult, QuotedResult
from sparsemble.core.threat import ThreatModel
from sparsemble.evaluation.checks import verdict
from sparsemble.evaluation.checks.reporting import open_checks_shown
from sparsemble.evaluation.compare import compare
from sparsemble.evaluation.corrupted_images import CorruptedImages, open_corruptions
from sparsemble.evaluation.evaluator import EvaluationSettings, data_record, evaluate, usual_attacks, with_adaptive
from sparsemble.evaluation.fingerprint import weights_hash
from sparsemble.evaluation.inputs import select_images
from sparsemble.evaluation.job import AnyAttack, EvaluationJob
from sparsemble.evaluation.loaded_model import LoadedModel, load_target
from sparsemble.evaluation.metrics import examples
from sparsemble.evaluation.outcome_store import OutcomeStore
from sparsemble.evaluation.progress import Report
from sparsemble.evaluation.quoted_results import read_result
from sparsemble.evaluation.resolve_data import resolve_data
from sparsemble.evaluation.run_attacks import run_attacks, source_hash
from sparsemble.evaluation.sanity_attacks import TRANSFERRED
from sparsemble.pipeline.progress import as_text, make_bars
from sparsemble.pipeline.stage import dataset, fingerprint
from sparsemble.pipeline.time_left import LEAST_SHARE

TARGET_OPTIONS = ("target", "row", "model", "data", "transfer", "access", "class_map", "mean", "std")
DEFAULT_EPS = {"linf": "8/255", "l2": 0.5, "l1": 12.0}


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """The options of the command line."""

    target: str
    row: str = ""
    model: str = ""
    data: str = ""
    attacks: str = ""
    """Empty: the usual ones for `access`."""
    transfer: str = ""
    eps: str = ""
    norm: str = ""
    images: int = 0
    seed: int = 0
    adaptive: bool = True
    search: Literal["float32", "bfloat16"] = "float32"
    shard: int = 100
    checks: Literal["default", "full"] = "default"
    access: Access = "gradients"
    class_map: str = ""
    mean: str = ""
    std: str = ""
    corruptions: str = ""
    """generated, or a folder of arrays; empty: none."""
    out: Path | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.images < 0 or self.shard < 1:
            raise InputError(f"images = {self.images} must be 0 (all) or more, shard = {self.shard} 1 or more")


@final
@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What will be evaluated, and where the result goes."""

    target: LoadedModel
    job: EvaluationJob
    data: DataRecord
    available: int
    checks: Literal["default", "full"]
    folder: Path
    corruptions: CorruptedImages | None = None


def prepare(options: EvaluationOptions) -> EvaluationPlan:
    """Load the model and decide data, threat model and attacks; nothing is attacked yet."""
    device = choose_device(options.device)
    chosen = _parse_attacks(options.attacks) if options.attacks else ()
    given = resolve_data(options.data, options.target) if options.data else None
    images = dataset(given) if given else None
    target = load_target(
        options.target,
        row=options.row,
        model=options.model,
        data=images,
        mean=_numbers(options.mean, "--mean"),
        std=_numbers(options.std, "--std"),
        device=device,
        access=options.access,
    )
    source = given or target.data
    if source is None:
        raise InputError(f"it is not known which images {options.target} is for; name them, as in --data cifar10")
    loaded = dataset(source)
    if options.images > len(loaded.test):
        raise InputError(f"images = {options.images} is more than the {len(loaded.test)} test images of the data set")
    if options.transfer:
        other = load_target(options.transfer, model=options.model, data=loaded, device=device)
        chosen = (*chosen, Transfer(attack=TRANSFERRED, source=other.model, label="transfer"))
    split = select_images(loaded, options.images).to(device)
    threat = _threat(options, target)
    if not options.attacks:
        chosen = (*usual_attacks(options.access, threat.norm), *chosen)
    class_map = _parse_class_map(options.class_map)
    if not class_map:
        target.check_class_names(loaded.classes)
    target = target.probed(split, len(loaded.classes), options.access, class_map)
    job = EvaluationJob(
        model=target.model,
        rule=target.rule,
        split=split,
        threat=threat,
        attacks=with_adaptive(chosen, target) if options.adaptive and options.access == "gradients" else chosen,
        classes=len(loaded.classes),
        seed=options.seed,
        shard=options.shard,
        search_dtype=options.search,
        access=options.access,
    )
    data = data_record(source, fingerprint(source), loaded, options.images)
    wanted, indices = options.corruptions, data.indices
    return EvaluationPlan(
        target=target,
        job=job,
        data=data,
        available=len(loaded.test),
        checks=options.checks,
        folder=options.out or _folder(options, target, job),
        corruptions=open_corruptions(wanted, split, indices, options.seed) if wanted else None,
    )


def run(plan: EvaluationPlan, command: str, console: Console) -> EvaluationResult:
    """Evaluate, and leave the result, the page and the outcomes in the plan's folder.

    Args:
        plan: what to evaluate.
        command: what reproduces the evaluation.
        console: where progress is shown.
    """
    from sparsemble.report import write_evaluation

    _check_folder(plan)
    store = OutcomeStore(plan.folder / "outcomes")
    settings = EvaluationSettings(
        command=command, checks=plan.checks, available=plan.available, corruptions=plan.corruptions
    )
    with only_run_in(plan.folder), _bar(console, plan.target.name) as report:
        result = evaluate(plan.job, plan.target, plan.data, settings, store=store, report=report)
        result = replace(result, checks=_with_display(result))
        write_evaluation(result, examples(run_attacks(plan.job, store), plan.job.split), plan.folder)
        write_json(plan.folder / "robustbench.json", result.to_robustbench())
    return result


def _with_display(result: EvaluationResult) -> tuple[CheckResult, ...]:
    """Return the checks with one of what the terminal shows beside the headline."""
    from sparsemble.report import evaluation_table

    others = result.checks[:-1]
    console = Console(width=200, file=io.StringIO())
    with console.capture() as shown:
        console.print(evaluation_table(replace(result, checks=(*others, verdict(50, True, "shown below")))))
    return (*others, open_checks_shown(others, shown.get()))


def compare_files(paths: Sequence[Path], out: Path | None) -> ComparisonResult:
    """Compare results on the same images, and write a page to `out` if it is given.

    Args:
        paths: files or folders of `sparsemble evaluate`, RobustBench's JSON files, logs of AutoAttack.
        out: folder of the page.
    """
    from sparsemble.report import write_comparison

    if len(paths) < 2:
        raise InputError("compare needs two or more results")
    read = [read_result(path / RESULT if path.is_dir() else path) for path in paths]
    ours = [result for result in read if isinstance(result, EvaluationResult)]
    comparison = compare(ours, [result for result in read if isinstance(result, QuotedResult)])
    if out:
        write_comparison(comparison, out)
    return comparison


def _check_folder(plan: EvaluationPlan) -> None:
    """Refuse a folder that holds the result of another model."""
    there = plan.folder / RESULT
    if there.is_file():
        old, new = read_json(there).get("model", {}).get("sha256"), weights_hash(plan.target.model)
        if old != new:
            raise InputError(
                f"{there} is the result of another model (sha256 {str(old)[:8]}, this one has {new[:8]}); choose "
                "another folder with --out"
            )


def _parse_attacks(text: str) -> tuple[AnyAttack, ...]:
    """Read `pgd,file.py:Mine` or a list in TOML such as `[{name = "pgd", steps = 100}]`."""
    is_list = text.lstrip().startswith("[")
    specs = parse_toml(f"attacks = {text}", "--attacks")["attacks"] if is_list else text.split(",")
    registries = (attacks, ensemble_attacks)
    if any((spec.get("name") if isinstance(spec, dict) else spec.strip()) == "patch" for spec in specs):
        raise InputError(f"--attacks: {OUTSIDE}")
    return tuple(build_from(registries, s.strip() if isinstance(s, str) else s, "--attacks") for s in specs)


def _numbers(text: str, option: str) -> tuple[float, ...]:
    """Read `0.49,0.48,0.45`.

    Raises:
        InputError: something else.
    """
    try:
        return tuple(float(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise InputError(f'{option} "{text}" must be a number for each channel, as in 0.49,0.48,0.45') from None


def _parse_class_map(text: str) -> tuple[int, ...]:
    """Read `3,5,7`, or a file with such numbers.

    Raises:
        InputError: something else.
    """
    content = Path(text).read_text(encoding="utf-8-sig") if text and Path(text).is_file() else text
    words = content.replace(",", " ").split()
    if wrong := [word for word in words if not word.isdecimal()]:
        raise InputError(
            f'--class-map "{wrong[0]}" is no output of the model; give the index of the output of each class, as in '
            "3,5,7, or a file of them"
        )
    return tuple(map(int, words))


def _threat(options: EvaluationOptions, target: LoadedModel) -> ThreatModel:
    """Return the threat model of the options; what they leave open comes from the model, or is the usual one."""
    norm = options.norm or (target.threat.norm if target.threat else "linf")
    eps: Any = options.eps
    if not eps:
        same = target.threat is not None and target.threat.norm == norm
        eps = target.threat.eps if same and target.threat else DEFAULT_EPS.get(norm, 0.0)
    elif "/" not in eps:
        try:
            eps = float(eps)
        except ValueError:
            raise InputError(f'--eps "{eps}" is not a number; write it as 8/255 or 0.031') from None
    return from_dict(ThreatModel, {"norm": norm, "eps": eps})


def _folder(options: EvaluationOptions, target: LoadedModel, job: EvaluationJob) -> Path:
    """Return the folder of this evaluation, so that the same command resumes it."""
    settings = {"threat": to_dict(job.threat), "attacks": to_dict(job.attacks), "images": options.images}
    settings |= {"seed": job.seed, "shard": job.shard, "search": job.search_dtype, "device": options.device}
    settings |= {name: getattr(options, name) for name in TARGET_OPTIONS}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=source_hash).encode()).hexdigest()[:8]
    name = re.sub(r"[^\w.-]+", "-", target.name)
    return Path("evaluations") / f"{name}-{digest}"


@contextmanager
def _bar(console: Console, title: str) -> Iterator[Report]:
    """Show one bar with the time left; lines where output is no terminal."""
    began = time.perf_counter()
    bar = make_bars(console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(f"evaluate {title}", total=1.0, text="")
    shown = ""

    def report(fraction: float, text: str) -> None:
        nonlocal shown
        known = fraction >= LEAST_SHARE
        left = as_text((time.perf_counter() - began) * (1 - fraction) / fraction if known else None)
        bar.update(task, completed=fraction, text=f"{left}, {text}" if left else text)
        step = text.partition(":")[0]
        if not console.is_terminal and step != shown:
            shown = step
            line = f"[{100 * fraction:3.0f}%] {step}{', ' + left if left else ''}"
            console.print(line, markup=False, highlight=False)

    with bar:
        yield report
