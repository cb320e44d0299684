"""The strict reader and the recipe of a run: what is refused with which message, overrides, and the way back."""

import inspect
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Literal

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

import sparsemble.attacks.ensemble
import sparsemble.data
import sparsemble.ensemble
import sparsemble.models
import sparsemble.pruning
import sparsemble.training  # noqa: F401 (imports register the components)
from sparsemble.attacks.pgd import PGD
from sparsemble.core.artifacts import read_json, read_json_lines
from sparsemble.core.config import from_dict, nearest, override, parse_toml, read_toml
from sparsemble.core.errors import InputError
from sparsemble.core.registry import to_dict
from sparsemble.models.resnet import ResNet
from sparsemble.pipeline.recipe import Evaluate, Recipe, Stopping, load_recipe, shipped
from tests.helpers import examples
from tests.processes import run_python

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "tests" / "end_to_end" / "smoke.toml"
few = examples(60)


@dataclass(frozen=True, kw_only=True)
class Oven:
    degrees: float = 180.0
    trays: int = 2
    heat: Literal["top", "fan"] = "top"


@dataclass(frozen=True, kw_only=True)
class Cake:
    layers: int
    oven: Oven = Oven()
    ovens: tuple[Oven, ...] = ()
    shares: tuple[float, ...] = ()
    icing: float | None = None


class TestFromDict:
    def test_makes_dataclasses_all_the_way_down(self) -> None:
        table = {"layers": 3, "oven": {"heat": "fan"}, "ovens": [{"trays": 1}, {}], "shares": [1, "1/3"], "icing": 2}
        expected = Cake(layers=3, oven=Oven(heat="fan"), ovens=(Oven(trays=1), Oven()), shares=(1.0, 1 / 3), icing=2.0)
        assert from_dict(Cake, table) == expected

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            ({"layer": 1}, 'layer is not a known setting; did you mean "layers"?'),
            ({"layers": 1, "oven": {"degree": 1}}, 'oven.degree is not a known setting; did you mean "degrees"?'),
            ({"layers": 1, "ovens": [{}, {"tray": 1}]}, 'ovens[1].tray is not a known setting; did you mean "trays"?'),
            ({"layers": 1, "oven": {"zzz": 1}}, "oven.zzz is not a known setting; known: degrees, heat, trays"),
            ({}, "layers is missing"),
            ({"layers": "3"}, "layers = '3' must be a whole number"),
            ({"layers": 3.0}, "layers = 3.0 must be a whole number"),
            ({"layers": True}, "layers = True must be a whole number"),
            ({"layers": 1, "oven": {"heat": "fann"}}, "oven.heat = 'fann' must be one of 'top', 'fan'"),
            ({"layers": 1, "oven": {"heat": ["fan"]}}, "oven.heat = ['fan'] must be one of 'top', 'fan'"),
            ({"layers": 1, "oven": {"degrees": [1]}}, "oven.degrees = [1] must be a number"),
            ({"layers": 1, "ovens": {}}, "ovens = {} must be a list"),
            ({"layers": 1, "shares": [0.1, None]}, "shares[1] = None must be a number"),
            ({"layers": 1, "icing": "much"}, 'icing = "much" is not a number or a fraction such as "8/255"'),
        ],
    )
    def test_refuses_with_the_path_the_value_and_what_would_be_right(self, table, message) -> None:
        with pytest.raises(InputError) as refused:
            from_dict(Cake, table)
        assert str(refused.value) == message

    def test_what_is_no_table_is_refused(self) -> None:
        """In a process of its own: the type checker of the tests would refuse it first."""
        script = (
            "from dataclasses import dataclass\nfrom typing import Literal\n"
            "from sparsemble.core.config import from_dict\n"
            f"{inspect.getsource(Oven)}{inspect.getsource(Cake)}"
            "for table in ([1], 'layers = 3', None, {'layers': 1, 'oven': 180}, {'layers': 1, 'ovens': [3]}):\n"
            "    try: print(from_dict(Cake, table, 'cake'))\n"
            "    except ValueError as error: print(error)\n"
        )
        result = run_python(script)
        assert result.stdout.splitlines() == [
            "cake must be a table, got [1]",
            "cake must be a table, got 'layers = 3'",
            "cake must be a table, got None",
            "cake.oven must be a table, got 180",
            "cake.ovens[0] must be a table, got 3",
        ]

    @given(st.integers(-999, 999), st.integers(1, 999))
    @few
    def test_a_fraction_is_read_as_the_nearest_float(self, top, bottom) -> None:
        for text in (f"{top}/{bottom}", f" {top} / {bottom} "):
            assert from_dict(Oven, {"degrees": text}).degrees == float(Fraction(top, bottom))

    def test_a_number_in_quotes_is_read_too(self) -> None:
        assert from_dict(Oven, {"degrees": "0.25"}).degrees == 0.25
        assert from_dict(Oven, {"degrees": "1e-3"}).degrees == 1e-3

    @pytest.mark.parametrize("text", ["8/0", "8//255", "8/255/2", "eight", "", "inf", "nan", "0x8", "8,5"])
    def test_what_is_no_fraction_is_refused(self, text) -> None:
        with pytest.raises(InputError, match=r'degrees = ".*" is not a number or a fraction such as "8/255"'):
            from_dict(Oven, {"degrees": text})

    @pytest.mark.parametrize("value", ["1e999", 10**400], ids=["text", "number"])
    def test_a_number_beyond_floats_is_refused(self, value) -> None:
        with pytest.raises(InputError, match="degrees"):
            from_dict(Oven, {"degrees": value})


def test_nearest_offers_one_name_or_all() -> None:
    assert nearest("epoch", ["epochs", "rate"]) == '; did you mean "epochs"?'
    assert nearest("zzz", ["b", "a"]) == "; known: a, b"


def test_an_old_name_counts_only_where_the_new_one_is_known() -> None:
    assert nearest("team_static", ["ensemble_static", "dense"]) == "; team_static is now called ensemble_static"
    assert nearest("stop", ["steps", "size"]) == '; did you mean "steps"?'


class TestToml:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
    def test_what_editors_of_other_systems_write_is_read(self, encoding: str, tmp_path: Path) -> None:
        path = tmp_path / "schöner name.toml"
        path.write_bytes('seed = 3\r\nname = "Möwe"\r\n'.encode(encoding))
        assert read_toml(path) == {"seed": 3, "name": "Möwe"}
        path.write_bytes('{"a": "Möwe"}\r\n'.encode(encoding))
        assert read_json(path) == {"a": "Möwe"}
        path.write_bytes('{"a": 1}\r\n{"a": 2}\r\n'.encode(encoding))
        assert read_json_lines(path) == [{"a": 1}, {"a": 2}]

    def test_a_fault_names_the_file_and_its_place(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.toml"
        path.write_text("seed = 0\nsparsity = = 1\n", "utf-8")
        with pytest.raises(InputError, match=r"broken\.toml is not valid TOML: .*line 2"):
            read_toml(path)
        path.write_bytes("name = 'Ente ä'".encode("latin-1"))
        with pytest.raises(InputError, match=r"broken\.toml cannot be read as a TOML file: .*; save it as UTF-8"):
            read_toml(path)
        for missing in (tmp_path / "none.toml", tmp_path):
            with pytest.raises(InputError, match="cannot be read as a TOML file"):
                read_toml(missing)


class TestOverride:
    @pytest.mark.parametrize(
        ("setting", "expected"),
        [
            ("seed=7", 7),
            ("seed = 7 ", 7),
            ("seed=0.5", 0.5),
            ("seed=1e-3", 1e-3),
            ("seed=true", True),
            ("seed='a b'", "a b"),
            ('seed="8/255"', "8/255"),
            ("seed=8/255", "8/255"),
            ("seed=resnet18", "resnet18"),
            ("seed=a=b", "a=b"),
            ("seed=", ""),
            ("seed=[1, 2]", [1, 2]),
            ("seed={name = 'pgd', steps = 5}", {"name": "pgd", "steps": 5}),
        ],
    )
    def test_values_are_toml_and_bare_words_strings(self, setting, expected) -> None:
        found = override({"seed": 0, "other": 1}, [setting])
        assert found == {"seed": expected, "other": 1}
        assert type(found["seed"]) is type(expected)

    def test_paths_lead_into_tables_making_those_that_are_missing(self) -> None:
        table = {"train": {"epochs": 3, "schedule": {"learning_rate": 0.1}}}
        found = override(table, ["train.schedule.learning_rate=0.2", "evaluate.images=9", "train.epochs=4"])
        assert found == {"train": {"epochs": 4, "schedule": {"learning_rate": 0.2}}, "evaluate": {"images": 9}}

    def test_a_component_given_by_its_name_becomes_a_table(self) -> None:
        assert override({"model": "resnet18"}, ["model.width=8"]) == {"model": {"name": "resnet18", "width": 8}}

    def test_the_last_of_two_wins(self) -> None:
        assert override({}, ["a.b=1", "a.b=2"]) == {"a": {"b": 2}}

    def test_leaves_the_table_as_found(self) -> None:
        table = {"a": {"b": [1, {"c": 2}]}, "model": "tiny"}
        found = override(table, ["a.b=3", "a.d=4", "model.width=2"])
        found["a"]["e"] = 5
        assert table == {"a": {"b": [1, {"c": 2}]}, "model": "tiny"}

    @pytest.mark.parametrize("setting", ["seed", "", "=1", ".seed=1", "train.=1", "a..b=1"])
    def test_what_is_no_setting_is_refused(self, setting) -> None:
        with pytest.raises(InputError, match="must have the form key=value, as in --set train"):
            override({"seed": 0}, [setting])

    @pytest.mark.parametrize("inner", [3, [1], True])
    def test_a_path_through_a_value_is_refused(self, inner) -> None:
        with pytest.raises(InputError, match=r'--set "seed\.deep=1": seed is .* not a table'):
            override({"seed": inner}, ["seed.deep=1"])


def smoke(*changes: str) -> Recipe:
    return load_recipe(str(SMOKE), changes)[1]


class TestRecipe:
    @pytest.mark.parametrize("name", ["digits", str(SMOKE)])
    def test_written_out_it_reads_back_to_the_same(self, name: str, tmp_path: Path) -> None:
        _, recipe = load_recipe(name)
        path = tmp_path / "resolved.toml"
        path.write_text(tomli_w.dumps(to_dict(recipe)), "utf-8")
        title, again = load_recipe(str(path))
        assert title == "resolved"
        assert again == recipe
        assert to_dict(again) == to_dict(recipe)

    def test_written_out_it_spells_every_default_and_no_alias(self) -> None:
        table = to_dict(smoke("model=resnet18", "stopping={}"))
        assert table["model"] == {"name": "resnet", "depth": 18, "width": 64, "stem": "cifar"}
        assert table["stopping"]["max_accuracy_drop"] == Stopping().max_accuracy_drop
        assert table["stopping"]["rule"]["name"] == "die"
        assert table["train"]["eval_every"] == 1

    @given(st.floats(1e-6, 1.0), st.floats(0.0, 0.999))
    @few
    def test_no_digit_of_a_number_is_lost(self, eps: float, sparsity: float) -> None:
        recipe = replace(BASE, sparsity=sparsity, threat=replace(BASE.threat, eps=eps))
        assert from_dict(Recipe, parse_toml(tomli_w.dumps(to_dict(recipe)), "here")) == recipe

    def test_a_fraction_is_read_as_one(self) -> None:
        assert smoke("threat.eps='8/255'").threat.eps == 8 / 255
        assert smoke("threat.eps=8/255").threat.eps == 8 / 255

    def test_settings_reach_their_places(self) -> None:
        recipe = smoke("seed=9", "train.epochs=5", "model.width=2", "train.loss.attack.steps=4")
        assert (recipe.seed, recipe.train.epochs, recipe.model.width) == (9, 5, 2)
        assert recipe.train.loss.attack.steps == 4
        assert recipe == replace(smoke(*("train.epochs=5", "model.width=2", "train.loss.attack.steps=4")), seed=9)
        assert smoke("model=resnet34").model == ResNet(depth=34)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            (
                "train.schedule.learning_rte=1",
                'train.schedule.learning_rte is not a known setting; did you mean "learning_rate"?',
            ),
            ("trane.epochs=1", 'trane is not a known setting; did you mean "train"?'),
            ("train.loss=pgdat", 'train.loss = "pgdat" is not a known loss; did you mean "pgd_at"?'),
            (
                "evaluate.attacks=['pgd', 'pdg']",
                'evaluate.attacks[1] = "pdg" is not a known attack; did you mean "pgd"?',
            ),
            ("evaluate.attacks=[{name='pgd', step=1}]", "evaluate.attacks[0].step is not a known setting"),
            ("train.loss.attack.steps=0", "train.loss.attack: steps = 0"),
            ("sparsity='80 %'", 'sparsity = "80 %" is not a number'),
            ("train.schedule.optimiser={name='sgd', momentum=1}", "train.schedule.optimiser: momentum = 1"),
            ("threat.norm=linff", "threat.norm = 'linff' must be one of 'linf', 'l2'"),
            ("seed=0.5", "seed = 0.5 must be a whole number"),
            ("prune.scores=nis", "prune.scores = 'nis' must be a list"),
            ("prune.scores=['nis', 'nis']", "prune: scores names one twice: nis, nis"),
            ("prune.scores=[]", "prune: scores is empty"),
            ("stopping.max_accuracy_drop=1.5", "stopping: max_accuracy_drop = 1.5 must lie in [0, 1]"),
            ("stopping.attacked_share=-1", "stopping: attacked_share = -1 must lie in [0, 1]"),
            ("stopping.rounds=-1", "stopping: rounds = -1 must be 0 or more"),
            (
                "stopping.against=['hijack', 'hijack']",
                "stopping.against has two attacks labelled hijack40; label one",
            ),
            ("members=1", "members"),
            (
                "train.loss=eed",
                'train.loss = "eed" is the loss of an ensemble, and a single network is trained',
            ),
            (
                "prune.loss=adp",
                'prune.loss = "adp" is the loss of an ensemble, and a single network is trained',
            ),
            (
                "train.loss={name='awp', inner='gal'}",
                'train.loss = "gal" is the loss of an ensemble, and a single network is trained there',
            ),
            ("ensemble.loss={name='joint', base='joint'}", 'ensemble.loss: base = "joint" is the loss of'),
            ("ensemble.loss={name='eed', omega=-1}", "ensemble.loss: omega = -1 must be 0 or more, and"),
            ("evaluate.curve_eps=[0.1, 0.2]", "evaluate: curve_eps must rise from 0"),
            ("evaluate.curve_eps=[0, 0.2, 0.2]", "evaluate: curve_eps must rise from 0"),
            ("evaluate.attacks=['pgd', 'pgd']", "evaluate: attacks must have different labels"),
            (
                "evaluate.attacks=['carlini_wagner']",
                'carlini_wagner works in l2 only, not in linf; use "cw_linf" for linf',
            ),
            (
                "evaluate.black_box=['hop_skip_jump']",
                'hop_skip_jump works in l2 only, not in linf; use "rays" for linf',
            ),
        ],
    )
    def test_a_bad_setting_is_refused_with_its_path(self, setting, message) -> None:
        with pytest.raises(InputError) as refused:
            smoke(setting)
        assert str(refused.value).startswith(message)

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("team_size=3", "team_size is not a known setting; team_size is now called members"),
            ("dynamic.stop=die", "dynamic is not a known setting; dynamic is now called stopping"),
            ("stopping.stop=die", "stopping.stop is not a known setting; stop is now called rule"),
            ("computing.precision=bfloat16", "computing is not a known setting; computing is now called precision"),
            (
                "precision.precision=bfloat16",
                "precision.precision is not a known setting; precision is now called dtype",
            ),
            ("ensemble.combine=maximum", "ensemble.combine is not a known setting; combine is now called combiner"),
            ("train.objective=trades", "train.objective is not a known setting; objective is now called loss"),
            ("train.probe_every=2", "train.probe_every is not a known setting; probe_every is now called eval_every"),
            ("prune.shares=3", "prune.shares is not a known setting; shares is now called folds"),
            ("train.schedule.rate=1", "train.schedule.rate is not a known setting; rate is now called learning_rate"),
            (
                "train.schedule.decay=cosine",
                "train.schedule.decay is not a known setting; decay is now called lr_schedule",
            ),
            (
                "train.schedule.optimiser={name='adam', decay=[0.9, 0.99]}",
                "train.schedule.optimiser.decay is not a known setting; decay is now called betas",
            ),
            ("train.schedule.average={}", "train.schedule.average is not a known setting; average is now called ema"),
            ("train.schedule.clip=1", "train.schedule.clip is not a known setting; clip is now called max_grad_norm"),
            ("train.schedule.warm_up=0", "train.schedule.warm_up is not a known setting; warm_up is now called warmup"),
            ("train.loss=madry", 'train.loss = "madry" is not a known loss; madry is now called pgd_at'),
            ("train.loss=natural", 'train.loss = "natural" is not a known loss; natural is now called standard'),
            (
                "train.loss={name='weight_perturbation'}",
                'train.loss = "weight_perturbation" is not a known loss; weight_perturbation is now called awp',
            ),
        ],
    )
    def test_an_old_name_is_refused_with_the_new_one(self, setting, message) -> None:
        with pytest.raises(InputError) as refused:
            smoke(setting)
        assert str(refused.value) == message

    def test_a_missing_part_is_named(self, tmp_path: Path) -> None:
        table = parse_toml(SMOKE.read_text("utf-8"), "smoke")
        for part in ("sparsity", "data", "model", "threat", "train", "prune", "ensemble"):
            with pytest.raises(InputError, match=f"^{part} is missing$"):
                from_dict(Recipe, {key: value for key, value in table.items() if key != part})
        assert (
            from_dict(Recipe, {key: value for key, value in table.items() if key != "evaluate"}).evaluate == Evaluate()
        )

    def test_is_named_after_its_file_or_its_folder(self, tmp_path: Path) -> None:
        run = tmp_path / "yesterday"
        run.mkdir()
        for path, title in ((run / "recipe.toml", "yesterday"), (run / "other.toml", "other"), (run / "bare", "bare")):
            path.write_text(SMOKE.read_text("utf-8"), "utf-8")
            assert load_recipe(str(path)) == (title, BASE)
        assert load_recipe("digits")[0] == "digits"
        with pytest.raises(InputError, match=r'"digts" is neither a recipe nor a \.toml file; did you mean "digits"\?'):
            load_recipe("digts")

    def test_every_shipped_recipe_is_good(self) -> None:
        assert "digits" in shipped()
        for name in shipped():
            assert load_recipe(name)[0] == name

    def test_pool_is_every_score_on_every_share(self) -> None:
        recipe = smoke("prune.folds=4", "prune.scores=['nis', 'erm']")
        assert [(score.name, j) for score, j in recipe.prune.pool] == [
            (name, j) for name in ("nis", "erm") for j in (1, 2, 3)
        ]
        assert [j for _, j in smoke("prune.folds=1").prune.pool] == [1] * 4

    @pytest.mark.parametrize(("sparsity", "members", "expected"), [(0.8, 4, 0.95), (0.5, 2, 0.75), (0.0, 2, 0.5)])
    def test_member_sparsity_counts_the_whole_ensemble(self, sparsity, members, expected) -> None:
        recipe = replace(BASE, sparsity=sparsity, members=members)
        assert recipe.member_sparsity == pytest.approx(expected)

    def test_same_attack_twice_needs_labels(self) -> None:
        attacks = "evaluate.attacks=[{name='pgd', label='first'}, {name='pgd', label='second'}]"
        assert smoke(attacks).evaluate.attacks == (PGD(label="first"), PGD(label="second"))


BASE = smoke()
