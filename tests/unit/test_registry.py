"""The registry: components found by walking folders, built from names and tables, written back as plain values."""

import importlib
import json
import sys
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sparsemble.core.errors import InputError
from sparsemble.core.registry import REGISTRIES, Component, Registry, to_dict

HERE = __name__.rpartition(".")[0]


class Fruit(Component):
    """An interface of its own, so that the tests touch no real registry."""

    @abstractmethod
    def weigh(self) -> float:
        """Return grams."""


@dataclass(frozen=True, kw_only=True)
class Apple(Fruit):
    """A fruit with every kind of setting."""

    grams: float = 150.0
    seeds: int = 5
    kind: str = "red"
    ripe: bool = True
    graft: Fruit | None = None
    sizes: tuple[float, ...] = (0.25, 0.5)
    basket: tuple[Fruit, ...] = ()
    worm: str | None = None

    def __post_init__(self) -> None:
        if self.grams < 0:
            raise InputError(f"grams = {self.grams:g} must be 0 or more")

    def weigh(self) -> float:
        return self.grams


@dataclass(frozen=True, kw_only=True)
class Pear(Fruit):
    """A fruit with a setting that must be given."""

    version: ClassVar[int] = 4
    grams: float

    def weigh(self) -> float:
        return self.grams


def in_file(cls: type, name: str) -> type:
    """Move a class to the file in which its component should stand."""
    cls.__module__ = f"{HERE}.{name}"
    return cls


@pytest.fixture
def fruits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry[Fruit]]:
    """A registry with two components and an alias, forgotten afterwards."""
    registry: Registry[Fruit] = Registry("fruit", Fruit)
    for name, cls in (("apple", Apple), ("pear", Pear)):
        monkeypatch.setattr(cls, "__module__", f"{HERE}.{name}")
        registry.register(name)(cls)
    registry.alias("boskoop", "apple", grams=220.0, kind="sour")
    yield registry
    del REGISTRIES[Fruit]


class TestBuild:
    def test_from_a_name_or_a_table(self, fruits) -> None:
        assert fruits.build("apple") == fruits.build({"name": "apple"}) == Apple()
        assert fruits.build({"name": "pear", "grams": 90}) == Pear(grams=90.0)

    def test_does_not_change_the_table(self, fruits) -> None:
        table = {"name": "boskoop", "seeds": 3, "graft": {"name": "apple", "seeds": 1}}
        fruits.build(table)
        assert table == {"name": "boskoop", "seeds": 3, "graft": {"name": "apple", "seeds": 1}}
        assert fruits.aliases["boskoop"] == {"name": "apple", "grams": 220.0, "kind": "sour"}

    def test_an_alias_stands_for_its_settings_which_a_table_may_change(self, fruits) -> None:
        assert fruits.build("boskoop") == Apple(grams=220.0, kind="sour")
        assert fruits.build({"name": "boskoop", "kind": "sweet"}) == Apple(grams=220.0, kind="sweet")

    def test_components_within_components(self, fruits) -> None:
        table = {"name": "apple", "graft": "boskoop", "basket": ["apple", {"name": "pear", "grams": 1}]}
        expected = Apple(graft=Apple(grams=220.0, kind="sour"), basket=(Apple(), Pear(grams=1.0)))
        assert fruits.build(table) == expected

    def test_an_unknown_name_gets_the_nearest(self, fruits) -> None:
        with pytest.raises(InputError, match=r'^fruit = "aple" is not a known fruit; did you mean "apple"\?$'):
            fruits.build("aple")
        with pytest.raises(InputError, match=r'^lunch\[0\] = "bosko" is not a known fruit; did you mean "boskoop"\?$'):
            fruits.build("bosko", "lunch[0]")
        with pytest.raises(InputError, match=r"; known: apple, boskoop, pear$"):
            fruits.build("zzzzz")

    def test_an_unknown_option_gets_the_nearest_real_one(self, fruits) -> None:
        with pytest.raises(InputError, match=r'^fruit\.gram is not a known setting; did you mean "grams"\?$'):
            fruits.build({"name": "apple", "gram": 3})
        with pytest.raises(InputError, match=r"^lunch\.graft\.q is not a known setting; known: .*grams.*seeds"):
            fruits.build({"name": "apple", "graft": {"name": "apple", "q": 3}}, "lunch")
        with pytest.raises(InputError, match=r"^fruit\.version is not a known setting; known: grams$"):
            fruits.build({"name": "pear", "grams": 3, "version": 4})

    def test_a_missing_setting_or_name_is_named(self, fruits) -> None:
        with pytest.raises(InputError, match=r"^fruit\.grams is missing$"):
            fruits.build("pear")
        for table in ({}, {"grams": 3}, {"name": 7}, {"name": None}):
            with pytest.raises(InputError, match=r"^lunch needs a name; known: apple, boskoop, pear$"):
                fruits.build(table, "lunch")

    def test_a_value_that_the_component_refuses_comes_with_its_path(self, fruits) -> None:
        with pytest.raises(InputError, match=r"^lunch\.graft: grams = -1 must be 0 or more$"):
            fruits.build({"name": "apple", "graft": {"name": "apple", "grams": -1}}, "lunch")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"grams": "heavy"}, 'fruit.grams = "heavy" is not a number or a fraction such as "8/255"'),
            ({"grams": True}, "fruit.grams = True must be a number"),
            ({"seeds": 2.0}, "fruit.seeds = 2.0 must be a whole number"),
            ({"seeds": True}, "fruit.seeds = True must be a whole number"),
            ({"kind": 3}, "fruit.kind = 3 must be a string in quotes"),
            ({"ripe": 1}, "fruit.ripe = 1 must be true or false"),
            ({"ripe": "true"}, "fruit.ripe = 'true' must be true or false"),
            ({"graft": 3}, "fruit.graft = 3 must be a name or a table with a name"),
            ({"sizes": 0.5}, "fruit.sizes = 0.5 must be a list"),
            ({"sizes": "0.5"}, "fruit.sizes = '0.5' must be a list"),
            ({"sizes": [0.5, "x"]}, 'fruit.sizes[1] = "x" is not a number or a fraction such as "8/255"'),
            ({"basket": ["apple", "pera"]}, 'fruit.basket[1] = "pera" is not a known fruit; did you mean "pear"?'),
        ],
    )
    def test_a_value_of_the_wrong_type_is_refused(self, fruits, settings, message) -> None:
        with pytest.raises(InputError) as refused:
            fruits.build({"name": "apple", **settings})
        assert str(refused.value) == message


class TestRegister:
    def test_sets_the_name_and_lists_it(self, fruits) -> None:
        assert Apple.name == "apple"
        assert fruits.names() == ["apple", "boskoop", "pear"]
        assert REGISTRIES[Fruit] is fruits

    @pytest.mark.parametrize("name", ["apple", "boskoop"])
    def test_a_name_that_is_taken_fails(self, fruits, name) -> None:
        with pytest.raises(TypeError, match=f'fruit "{name}" is registered twice'):
            fruits.register(name)(in_file(type("Other", (Apple,), {}), name))
        with pytest.raises(TypeError, match=f'fruit "{name}" is registered twice'):
            fruits.alias(name, "pear")

    def test_a_name_that_differs_from_the_file_fails(self, fruits) -> None:
        plum = in_file(dataclass(frozen=True)(type("Plum", (Pear,), {})), "plums")
        with pytest.raises(TypeError, match=r'fruit "plum" must stand in a file named plum\.py, not in .*\.plums$'):
            fruits.register("plum")(plum)
        assert "plum" not in fruits.components

    def test_a_class_of_another_interface_fails(self, fruits) -> None:
        stone = in_file(dataclass(frozen=True)(type("Stone", (Component,), {})), "stone")
        with pytest.raises(TypeError, match="Stone must be a subclass of Fruit"):
            fruits.register("stone")(stone)

    @pytest.mark.parametrize("decorate", [lambda cls: cls, dataclass])
    def test_what_is_no_frozen_dataclass_fails(self, fruits, decorate) -> None:
        fig = in_file(decorate(type("Fig", (Fruit,), {})), "fig")
        with pytest.raises(TypeError, match="Fig must be a frozen dataclass"):
            fruits.register("fig")(fig)

    def test_a_class_that_forgot_the_decorator_below_a_dataclass_fails(self, fruits) -> None:
        quince = in_file(type("Quince", (Pear,), {"__annotations__": {"peel": int}, "peel": 1}), "quince")
        with pytest.raises(TypeError, match="Quince must be a frozen dataclass"):
            fruits.register("quince")(quince)


COMPONENT = '''
from dataclasses import dataclass
from tests.unit.test_registry import REGISTRIES, Fruit
@REGISTRIES[Fruit].register("{name}")
@dataclass(frozen=True, kw_only=True)
class Found(Fruit):
    """A fruit."""
    def weigh(self) -> float:
        return 1.0
'''


class TestWalk:
    @pytest.fixture
    def orchard(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """An empty package that can be imported."""
        folder = tmp_path / "orchard"
        folder.mkdir()
        (folder / "__init__.py").touch()
        monkeypatch.syspath_prepend(str(tmp_path))
        importlib.invalidate_caches()
        yield folder
        for name in [name for name in sys.modules if name.partition(".")[0] == "orchard"]:
            del sys.modules[name]

    def test_a_file_dropped_in_is_found(self, fruits, orchard) -> None:
        (orchard / "cherry.py").write_text(COMPONENT.format(name="cherry"), "utf-8")
        fruits.register_package("orchard")
        assert fruits.build("cherry").name == "cherry"
        fruits.register_package("orchard")  # what is imported already does not register twice
        assert "cherry" in fruits.names()

    def test_a_name_that_differs_from_its_file_fails_at_import(self, fruits, orchard) -> None:
        (orchard / "cherries.py").write_text(COMPONENT.format(name="cherry"), "utf-8")
        with pytest.raises(TypeError, match=r"must stand in a file named cherry\.py, not in orchard\.cherries"):
            fruits.register_package("orchard")

    def test_a_taken_name_fails_at_import(self, fruits, orchard) -> None:
        (orchard / "apple.py").write_text(COMPONENT.format(name="apple"), "utf-8")
        with pytest.raises(TypeError, match='fruit "apple" is registered twice'):
            fruits.register_package("orchard")


@dataclass(frozen=True)
class Bowl:
    """A dataclass that is no component."""

    first: Fruit
    others: tuple[Fruit, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


class TestToDict:
    SPECS = (
        "apple",
        "boskoop",
        {"name": "pear", "grams": 1 / 3},
        {"name": "apple", "sizes": [0.1, "1/3"], "ripe": False},
        {"name": "apple", "graft": {"name": "apple", "basket": ["boskoop", "apple"]}, "worm": "yes"},
    )

    @pytest.mark.parametrize("spec", SPECS)
    def test_what_is_written_is_built_again_even_from_json(self, fruits, spec) -> None:
        component = fruits.build(spec)
        assert fruits.build(to_dict(component)) == component
        assert fruits.build(json.loads(json.dumps(to_dict(component)))) == component
        assert to_dict(fruits.build(to_dict(component))) == to_dict(component)

    def test_spells_out_every_default_and_leaves_out_what_is_none(self, fruits) -> None:
        expected = {"name": "apple", "grams": 150.0, "seeds": 5, "kind": "red", "ripe": True}
        assert to_dict(Apple()) == {**expected, "sizes": [0.25, 0.5], "basket": []}

    def test_aliases_are_written_as_what_they_stand_for(self, fruits) -> None:
        assert to_dict(fruits.build("boskoop"))["name"] == "apple"

    def test_writes_dataclasses_and_containers_that_are_no_components(self, fruits) -> None:
        bowl = Bowl(Pear(grams=1.0), (Pear(grams=2.0),), {"made": (1, [Pear(grams=3.0)])})
        first, second, third = ({"name": "pear", "grams": float(n)} for n in (1, 2, 3))
        assert to_dict(bowl) == {"first": first, "others": [second], "notes": {"made": [1, [third]]}}

    def test_versions_stand_beside_every_component_where_asked_for(self, fruits) -> None:
        table = to_dict(Apple(graft=Pear(grams=1.0)), versions=True)
        assert (table["version"], table["graft"]["version"]) == (1, 4)
        assert "version" not in to_dict(Apple(graft=Pear(grams=1.0)))["graft"]

    def test_a_raised_version_changes_what_is_hashed(self, fruits, monkeypatch) -> None:
        nested = Apple(basket=(Pear(grams=1.0),))
        before = to_dict(nested, versions=True)
        monkeypatch.setattr(Pear, "version", 5)
        assert to_dict(nested, versions=True) != before
        assert to_dict(nested) == to_dict(Apple(basket=(Pear(grams=1.0),)))
