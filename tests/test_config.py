import json
from pathlib import Path

import pytest

from degrid import config, recipes
from degrid.engine.training.objective import given_class_weights
from degrid.types import UserError


def test_round_trip_through_json():
    chosen = config.override(
        config.RunConfig(),
        [
            "model.multi_grid=1,2,4",
            "model.smoothing.options.sigma=shared",
            "data.crop=[64,96]",
            "optim.lr=1e-3",
        ],
    )
    again = config.from_dict(config.RunConfig, json.loads(json.dumps(config.to_dict(chosen))))
    assert again == chosen
    assert chosen.model.multi_grid == (1, 2, 4)
    assert chosen.model.smoothing.options == {"sigma": "shared"}
    assert chosen.data.crop == (64, 96)
    assert chosen.optim.lr == 0.001


def test_override_leaves_the_rest_alone():
    chosen = config.override(config.RunConfig(), ["train.steps=7"])
    assert config.to_dict(chosen)["train"] == {**config.to_dict(config.RunConfig())["train"], "steps": 7}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.stpes=7", 'unknown setting "train.stpes". Did you mean "train.steps"'),
        ("trian.steps=7", 'no group "trian". Did you mean "train"'),
        ("steps=7", 'Did you mean "train.steps"'),
        ("train.steps", "expected a setting like"),
        ("train.steps=many", "setting \"train.steps\": expected a whole number, got 'many'"),
        ("train.steps=1.5", "expected a whole number"),
        ("train.steps=true", "expected a whole number"),
        ("data.crop=64", "expected 2 values, got 1"),
        ("data.crop=a,b", 'setting "data.crop": expected a whole number'),
        ("model.separable=3", "expected true or false"),
        ("model.rates=6,x", "expected numbers separated by commas or none"),
        (
            "model.smoothing=ssc",
            'setting "model.smoothing": expected a table|model.smoothing: expected a table',
        ),
        ("train.steps.more=1", 'no group "train.steps"'),
    ],
)
def test_mistakes_are_named(assignment, message):
    with pytest.raises(UserError) as error:
        config.override(config.RunConfig(), [assignment])
    assert any(part in str(error.value) for part in message.split("|"))


def test_pretrained_takes_a_switch_or_a_path():
    assert config.override(config.RunConfig(), ["model.pretrained=false"]).model.pretrained is False
    assert config.override(config.RunConfig(), ["model.pretrained=a/b.pth"]).model.pretrained == "a/b.pth"
    for given, read in {"False": False, "a/b.pth": "a/b.pth", "1e5": "1e5"}.items():  # texts, from Python
        assert config.override(config.RunConfig(), {"model.pretrained": given}).model.pretrained == read
    assert config.override(config.RunConfig(), {"data.workers": "0"}).data.workers == 0


@pytest.mark.parametrize("nothing", ["model.scales=none", "model.scales=", "model.scales=[]"])
def test_several_numbers_may_be_none(nothing):
    """As to take a recipe's multi-scale input away."""
    assert config.override(config.override(config.RunConfig(), ["model.scales=0.75,0.5"]), [nothing]).model.scales == ()
    assert config.override(config.RunConfig(), ["model.rates="]).model.rates is None
    with pytest.raises(UserError, match="expected numbers separated by commas, got None"):
        config.override(config.RunConfig(), ["data.jitter=none"])


def test_none_is_nothing_where_a_text_may_be_empty():
    given = config.override(
        config.RunConfig(), ["then=folder", "data.val=test", "train.init=a", "train.trackers=wandb"]
    )
    found = config.override(given, ["then=none", "data.val=None", "train.init=null", "train.trackers=none"])
    assert (found.then, found.data.val, found.train.init, found.train.trackers) == ("", "", "", "")
    assert config.override(given, ["train.init=./none"]).train.init == "./none"


def test_none_is_a_word_where_text_is_expected():
    assert config.override(config.RunConfig(), ["train.class_weights=none"]) == config.RunConfig()


@pytest.mark.parametrize("given", ["train.class_weights=[1,2,0.5]", {"train.class_weights": (1, 2, 0.5)}])
def test_class_weights_may_be_numbers(given):
    found = config.override(config.RunConfig(), given)
    assert found.train.class_weights == (1.0, 2.0, 0.5)
    assert given_class_weights(found.train.class_weights) == given_class_weights("1,2,0.5") == (1.0, 2.0, 0.5)
    assert config.from_dict(config.RunConfig, json.loads(json.dumps(config.to_dict(found)))) == found


def leaves(values, path=""):
    for key, value in values.items():
        inner = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and not key.endswith("options"):
            yield from leaves(value, inner)
        else:
            yield inner


def test_every_setting_is_described():
    rows = list(config.describe_settings())
    settings = [row for row in rows if row.type != "group"]
    assert {row.path for row in settings} == set(leaves(config.to_dict(config.RunConfig())))
    assert [row.path for row in rows if row.type == "group"] == [
        "",
        "model",
        "model.smoothing",
        "data",
        "optim",
        "train",
        "train.asynchronous",
    ]
    assert all(row.text.endswith(".") and "\n" not in row.text for row in rows)
    by_path = {row.path: row for row in rows}
    assert by_path["train.steps"] == config.Setting("train.steps", "a whole number", "30000", "Optimiser steps.")
    assert by_path["data.crop"].type == "2 numbers separated by commas"
    assert by_path["model.rates"].type == "numbers separated by commas or none"


def test_defaults_are_described_as_they_are_given():
    given = [f"{row.path}={row.default}" for row in config.describe_settings() if row.type != "group" and row.default]
    assert config.override(config.RunConfig(), given) == config.RunConfig()


def test_texts_name_every_row_of_their_tables():
    from typer.testing import CliRunner

    from degrid.cli import app
    from degrid.models import ENCODERS, NETWORKS
    from degrid.resize import RESIZES
    from degrid.smoothing import OPERATORS

    texts = {row.path: row.text for row in config.describe_settings()}
    tables = {
        "model.network": NETWORKS,
        "model.encoder": [f"{family}:" for family in ENCODERS],
        "model.resize": RESIZES,
        "model.smoothing.operator": OPERATORS,
    }
    for path, rows in tables.items():
        for row in rows:
            assert f"`{row}" in texts[path], f"{path} does not name {row}"
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    assert [row for row in OPERATORS if row not in shown] == []
    for page in ("README.md", "docs/operators.md"):
        text = (Path(__file__).parents[1] / page).read_text()
        assert [row for row in OPERATORS if f"`{row}`" not in text] == [], page


def test_constructors_take_every_setting_of_a_network():
    from degrid.networks import NetworkSettings

    fields = set(config.to_dict(config.ModelConfig())) - {"network", "encoder", "smoothing"}
    assert set(NetworkSettings.__annotations__) == fields | {"operator", "max_rate", "operator_options"}


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_is_complete(name, tmp_path):
    chosen = recipes.load(name)
    file = tmp_path / "run.json"
    file.write_text(json.dumps({"config": config.to_dict(chosen)}))
    assert recipes.load(str(file)) == chosen
    assert "Command: degrid train" in recipes.RECIPES[name].__doc__


def test_misspelt_key_in_a_file(tmp_path):
    file = tmp_path / "mine.json"
    for text, message in (
        ('{"trian": {"steps": 3}}', 'unknown setting "trian". Did you mean "train"'),
        ('{"train": {"stesp": 3}}', 'unknown setting "train.stesp". Did you mean "train.steps"'),
        ('{"train": 3}', "train: expected a table of settings, got 3"),
        ("[]", "expected a table of settings"),
    ):
        file.write_text(text)
        with pytest.raises(UserError) as error:
            recipes.load(str(file))
        assert message in str(error.value)


def test_unknown_recipe_and_file():
    with pytest.raises(UserError, match='unknown recipe "camvd"\\. Did you mean "camvid"'):
        recipes.load("camvd")
    with pytest.raises(UserError, match=r"cannot read the settings file .*missing\.json"):
        recipes.load("missing.json")


def test_own_recipe(tmp_path, monkeypatch):
    (tmp_path / "my_recipes.py").write_text(
        "from degrid.config import RunConfig\ndef mine(): return RunConfig(name='mine')\ndef broken(): return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert recipes.load("my_recipes:mine").name == "mine"
    with pytest.raises(UserError, match="returned int"):
        recipes.load("my_recipes:broken")
    with pytest.raises(UserError, match='has no "mien". Did you mean "mine"'):
        recipes.load("my_recipes:mien")
    with pytest.raises(UserError, match='no module "nowhere_at_all"'):
        recipes.load("nowhere_at_all:f")
