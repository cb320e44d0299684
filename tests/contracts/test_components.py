"""What every part promises: one frozen dataclass in one file, its settings explained, built from words and back."""

import ast
import dataclasses
import functools
import inspect
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import tomli_w

import sparsemble
import sparsemble.attacks.ensemble
import sparsemble.data
import sparsemble.ensemble
import sparsemble.models
import sparsemble.pruning
import sparsemble.training
from sparsemble.core.config import parse_toml
from sparsemble.core.errors import InputError
from sparsemble.core.registry import REGISTRIES, Component, Registry, to_dict
from sparsemble.pipeline.catalogue import catalogue, sentence
from sparsemble.pipeline.graph import build_graph
from sparsemble.pipeline.recipe import load_recipe
from sparsemble.pipeline.stage import Stage, stages
from sparsemble.pipeline.stages.throughput import ThroughputStage

stages.register_package("sparsemble.pipeline.stages")

SMOKE = Path(__file__).parents[1] / "end_to_end" / "smoke.toml"
PACKAGE = Path(sparsemble.__file__).parent
COMPONENTS = [
    pytest.param(registry, component, id=f"{registry.kind}-{name}")
    for registry in REGISTRIES.values()
    if registry.interface.__module__.startswith("sparsemble.")
    for name, component in sorted(registry.components.items())
]
PARTS = [parameter for parameter in COMPONENTS if parameter.values[0] is not stages]
ALIASES = [
    pytest.param(registry, alias, id=alias) for registry in REGISTRIES.values() for alias in sorted(registry.aliases)
]


@functools.cache
def stage_examples() -> dict[str, Stage]:
    """Return a stage of each kind, as a run makes them."""
    recipes = [load_recipe(str(SMOKE), settings)[1] for settings in ((), ("parent={}",))]
    seed, data = recipes[0].seed, recipes[0].data
    measure = ThroughputStage(seed=seed, data=data, recipe=recipes[0], copy=1, workers=2)
    tasks = (task for recipe in recipes for task in build_graph(recipe, "title", "command").tasks)
    return {measure.name: measure, **{task.stage.name: task.stage for task in tasks}}


def required(component: type[Component]) -> list[str]:
    """Return the settings without a default."""
    missing = dataclasses.MISSING
    fields = dataclasses.fields(component)  # type: ignore[arg-type]
    return [f.name for f in fields if f.default is missing and f.default_factory is missing]


def example(hint: Any) -> Any:
    """Make up a value as a recipe would have it."""
    if hint in REGISTRIES:
        return next(name for name, component in sorted(REGISTRIES[hint].components.items()) if not required(component))
    return {str: "somewhere", int: 3, float: 0.5, bool: True}[hint]


def specification(registry: Registry[Any], component: type[Component]) -> dict[str, Any]:
    """Return the shortest table that builds a component."""
    if registry is stages:
        table: dict[str, Any] = to_dict(stage_examples()[component.name])
        return table
    hints = typing.get_type_hints(component)
    return {"name": component.name, **{name: example(hints[name]) for name in required(component)}}


def others(hint: Any, value: Any) -> list[Any]:
    """Return values of a setting that differ from this one, as a recipe would have them."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return others(next(a for a in args if a is not type(None)), value)
    if origin is Literal:
        return [entry for entry in args if entry != value]
    if origin is tuple:
        return [[*to_dict(value), *others(args[0], None)[:1]], *([to_dict(value)[:-1]] if value else [])]
    if hint in REGISTRIES:
        names = sorted(name for name, component in REGISTRIES[hint].components.items() if not required(component))
        return [name for name in names if value is None or name != value.name]
    if dataclasses.is_dataclass(hint):
        return []
    if hint is bool:
        return [not value]
    if hint is str:
        return ["another"]
    numbers = [(value or 0) + 1, 2] if hint is int else [(value or 1.0) / 2, 0.75, 2.5]
    return [number for number in numbers if number != value]


@pytest.mark.parametrize(("registry", "component"), COMPONENTS)
class TestEveryComponent:
    def test_is_one_frozen_final_dataclass_in_a_file_of_its_name(self, registry: Registry[Any], component: Any) -> None:
        assert component.__dict__["__dataclass_params__"].frozen
        assert component.__dict__.get("__final__"), "put @final above register"
        assert all(field.kw_only for field in dataclasses.fields(component))
        assert issubclass(component, registry.interface)
        assert not inspect.isabstract(component)
        path = Path(inspect.getsourcefile(component) or "")
        assert component.name == next(name for name, found in registry.components.items() if found is component)
        assert path.stem == component.name or not registry.own_files
        assert path.is_relative_to(PACKAGE)
        beside = [
            found
            for r in REGISTRIES.values()
            for found in r.components.values()
            if found.__module__ == component.__module__
        ]
        assert beside == [component] or not registry.own_files

    def test_says_what_it_is(self, registry: Registry[Any], component: Any) -> None:
        first = sentence(component)
        assert first.endswith("."), first
        assert 10 < len(first) < 200
        assert not first.startswith(component.__name__ + "("), "the docstring is the one that dataclass makes"
        assert (inspect.getmodule(component).__doc__ or "").strip()

    def test_is_built_and_written_back(self, registry: Registry[Any], component: Any) -> None:
        table = specification(registry, component)
        built = registry.build(table)
        assert type(built) is component
        written = to_dict(built)
        assert registry.build(json.loads(json.dumps(written))) == built
        assert registry.build(parse_toml(tomli_w.dumps(written), "here")) == built
        assert to_dict(registry.build(written)) == written
        fields = {field.name for field in dataclasses.fields(component) if getattr(built, field.name) is not None}
        if "label" in fields and "label" not in table:
            fields.remove("label")  # it follows the settings, so that a changed setting changes it, too
        assert set(written) == {"name", *fields}

    def test_is_a_value(self, registry: Registry[Any], component: Any) -> None:
        first, second = (registry.build(specification(registry, component)) for _ in range(2))
        assert first == second
        assert hash(first) == hash(second)
        with pytest.raises(dataclasses.FrozenInstanceError):
            first.anything = 1

    def test_carries_a_version(self, registry: Registry[Any], component: Any) -> None:
        assert isinstance(component.version, int)
        assert component.version >= 1
        assert (
            to_dict(registry.build(specification(registry, component)), versions=True)["version"] == component.version
        )

    def test_refuses_an_unknown_setting(self, registry: Registry[Any], component: Any) -> None:
        with pytest.raises(InputError, match=r"here\.surely_not is not a known setting"):
            registry.build({**specification(registry, component), "surely_not": 1}, "here")

    def test_every_setting_counts(self, registry: Registry[Any], component: Any) -> None:
        """A changed setting gives an unequal component, another hash and the same thing back from its words."""
        table = specification(registry, component)
        built, hints = registry.build(table), typing.get_type_hints(component)
        for field in dataclasses.fields(component):
            for value in others(hints[field.name], getattr(built, field.name)):
                try:
                    changed = registry.build({**table, field.name: value})
                except InputError:  # outside its range, or at odds with another setting
                    continue
                assert changed != built, f"{field.name} = {value!r}"
                assert to_dict(changed, versions=True) != to_dict(built, versions=True)
                assert registry.build(to_dict(changed)) == changed


@pytest.mark.parametrize(("registry", "component"), PARTS)
class TestEveryPart:
    """Of stages, which the pipeline makes, only the others' checks: their settings need no explanation."""

    def test_every_setting_has_a_docstring_below_it(self, registry: Registry[Any], component: Any) -> None:
        tree = ast.parse(Path(inspect.getsourcefile(component) or "").read_text("utf-8"))
        (body,) = [
            node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == component.__name__
        ]
        bare = [
            node.target.id
            for node, below in zip(body, [*body[1:], None], strict=True)
            if isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and "ClassVar" not in ast.dump(node.annotation)
            and not (isinstance(below, ast.Expr) and isinstance(getattr(below.value, "value", None), str))
        ]
        assert not bare, f"explain {', '.join(bare)} in a docstring below"

    def test_is_in_the_catalogue_with_its_settings(self, registry: Registry[Any], component: Any) -> None:
        (entry,) = [e for e in catalogue() if (e.kind, e.name) == (registry.kind, component.name)]
        assert entry.sentence == sentence(component)
        for field in dataclasses.fields(component):
            (line,) = [line for line in entry.text.splitlines() if line.startswith(f"  {field.name}: ")]
            assert line.endswith("(required)") == (field.name in required(component))


@pytest.mark.parametrize(("registry", "alias"), ALIASES)
def test_every_alias_stands_for_a_component(registry: Registry[Any], alias: str) -> None:
    built = registry.build(alias)
    assert type(built) is registry.components[registry.aliases[alias]["name"]]
    assert registry.build(to_dict(built)) == built


def test_nothing_that_could_be_a_component_is_forgotten() -> None:
    """A class below an interface that has no name was dropped into a folder that nobody walks.

    Those that a recipe cannot name, because they hold a model, have a name of their own or are private.
    """
    found, waiting = set(), [*REGISTRIES]
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += below
        found |= {cls for cls in below if not inspect.isabstract(cls) and cls.__module__.startswith("sparsemble.")}
    assert len(found) > 30
    assert not {cls for cls in found if "name" not in cls.__dict__ and not cls.__name__.startswith("_")}
