"""The settings: checked where they are made, filled in from the data, offered as presets."""

import dataclasses
import json
import re

import numpy as np
import pytest

from tfrec.cli.training import PRESET_HELP
from tfrec.data.features import Feature
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.data.vocabulary import Vocabulary
from tfrec.training.compiling import build_model
from tfrec.training.config import ABOVE_0, CHOICES, FROM_0, FROM_0_BELOW_1, FROM_0_TO_1, Config
from tfrec.training.presets import PRESETS, parse_settings, preset
from tfrec.training.resolve import resolve

NAMES = {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_bloks": 3}, "has no field `num_bloks`. Did you mean `num_blocks`?"),
        ({"colour": 3}, "has no field `colour`. There are: max_length, width"),
        ({"width": "wide"}, "`width` must be int. Received: 'wide'"),
        ({"width": True}, "`width` must be int. Received: True"),
        ({"width": -3}, "`width` must be above 0. Received: -3"),
        ({"epochs": 0}, "`epochs` must be above 0. Received: 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be above 0. Received: nan"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be above 0. Received: inf"),
        ({"weight_decay": -0.1}, "`weight_decay` must be 0 or more. Received: -0.1"),
        ({"dropout_rate": 1.0}, "`dropout_rate` must be in [0, 1). Received: 1.0"),
        ({"seen_weight": 1.5}, "`seen_weight` must be in [0, 1]. Received: 1.5"),
        ({"mlp_dims": (8, 0)}, "`mlp_dims` must be above 0. Received: 0"),
        ({"mlp_dims": ("a",)}, "`mlp_dims` must be tuple[int, ...]. Received: ('a',)"),
        (
            {"loss": "full-softmax"},
            "`loss` must be one of full_softmax, sampled_softmax, gbce, tfrs_retrieval. Received: 'full-",
        ),
        ({"positions": ("sideways",)}, "`positions` must be one of absolute, relative, rotary. Received: 'sideways'"),
        ({"width": 10, "num_heads": 3}, "`num_heads` must divide `width`. Received: num_heads=3, width=10"),
        ({"lazy_table": True, "loss": "full_softmax"}, "`lazy_table` needs a sampled loss"),
        ({"lazy_table": True, "precision": "float16"}, "`lazy_table` has no loss scaling"),
        ({"time_bias": True, "attention_window": 8}, "`time_bias` needs every pair of positions"),
        ({"block": "gru", "attention_window": 8}, "`block=gru` has neither an `attention_window` nor rotary positions"),
        ({"repeats": "yes"}, "`repeats` must be one of exclude, allow. Received: 'yes'"),
        (
            {"repeats": "allow", "seen_weight": 0.1},
            "so must the loss: leave out `seen_weight` or set it to 1. Received: 0.1",
        ),
        ({"epochs": 3, "final_epochs": 4}, "`final_epochs` is at most `epochs`. Received: 4 and 3"),
        ({"test": "7d"}, "`test` and `validation` are for `split=time`: set it too"),
        ({"split": "time"}, "`split=time` needs `test`: a span such as 7d, a date or a share"),
        ({"split": "time", "test": "soon"}, "A part of a split is a span such as 7d"),
        ({"split": "time", "test": "7d", "validation": "soon"}, "A part of a split is a span such as 7d"),
        ({"split": "time", "test": "2024-05-01"}, "The test starts at 2024-05-01: set `validation` too"),
        ({"split": "time", "test": "7d", "cold_items": 0.1}, "`cold_items` are held out of the split `last`"),
    ],
)
def test_a_wrong_config_is_refused_where_it_is_made(values, message):
    with pytest.raises(ValueError) as refused:
        Config.from_dict(values)
    assert message in str(refused.value)
    if set(values) <= NAMES:
        with pytest.raises(ValueError):
            Config(**values)


def test_every_field_has_a_rule_or_any_value_fits():
    """A field of numbers or of text that no table names would take nonsense without a word."""
    free = {f.name for f in dataclasses.fields(Config) if str(f.type).partition(" | ")[0] == "bool"}
    free |= {"targets", "weights", "task", "test", "validation"}  # rules over the columns of the data, checked with it
    assert {*CHOICES, *ABOVE_0, *FROM_0, *FROM_0_BELOW_1, *FROM_0_TO_1, *free} == NAMES


def test_a_config_takes_keywords_alone_and_numbers_of_numpy():
    with pytest.raises(TypeError, match="positional"):
        Config(200)
    assert Config(width=np.int64(64), learning_rate=np.float32(0.5)).width == 64
    assert Config(positions=["rotary"]).positions == ("rotary",)
    assert Config.from_dict(json.loads(json.dumps(Config(width=64).to_dict()))) == Config(width=64)


def test_the_docstring_gives_the_default_of_every_field():
    entries = re.split(r"\n {8}(?=\w+: )", Config.__doc__.partition("Args:")[2].partition("Raises:")[0])
    described = {entry.partition(":")[0]: entry for entry in entries[1:]}
    assert list(described) == [field.name for field in dataclasses.fields(Config)]
    assert [name for name, entry in described.items() if "Default:" not in entry] == []


def test_settings_without_an_equals_sign_are_refused():
    with pytest.raises(ValueError, match="--set takes name=value. Received: 'width'"):
        parse_settings(["width"])


@pytest.mark.parametrize(
    ("events", "num_items", "width", "dropout_rate", "loss", "lazy_table"),
    [
        (1000, 100, 64, 0.5, "full_softmax", False),
        (900_000, 4000, 128, 0.3, "full_softmax", False),
        (900_000, 40_000, 128, 0.5, "sampled_softmax", False),
        (900_000, 90_000, 128, 0.5, "tfrs_retrieval", True),
    ],
)
def test_open_fields_are_filled_in_from_the_data(events, num_items, width, dropout_rate, loss, lazy_table):
    items = np.resize(np.arange(2, num_items + 2, dtype=np.int32), events)
    vocabulary = Vocabulary([f"i{i}" for i in range(num_items)])
    offsets = np.arange(0, events + 1, 100)
    split = LeaveLastOut(PreparedData(vocabulary, items, np.zeros(events, np.int64), offsets, {}))
    config = resolve(Config(), split)
    chosen = (config.width, config.dropout_rate, config.loss, config.lazy_table)
    assert chosen == (width, dropout_rate, loss, lazy_table)
    assert config.item_init == "cooccurrence"
    assert config.seen_weight == (0.0 if dropout_rate == 0.3 else 0.1)
    assert resolve(Config(repeats="allow"), split).seen_weight == 1.0
    assert config.num_heads == width // 32
    assert config.num_blocks == (2 if events == 1000 else 3)
    assert config.epochs == (60 if events == 1000 else 20)
    assert config.temperature == 0.05
    assert resolve(Config(similarity="dot"), split).temperature == 1.0
    assert resolve(Config(steps=11_500), split).epochs == (60 if events == 1000 else 27)
    assert resolve(config, split) == config
    assert resolve(Config(width=48, dropout_rate=0.0), split).dropout_rate == 0.0
    assert resolve(Config(loss="full_softmax"), split).lazy_table is False
    with pytest.raises(ValueError, match=r"fill it in with `resolve\(config, LeaveLastOut\(data\)\)`"):
        build_model(Config(), 5)


def test_every_preset_makes_a_model_and_is_offered(data):
    for name, settings in PRESETS.items():
        assert name in PRESET_HELP
        config = Config.from_dict(preset(name))
        assert all(json.loads(json.dumps(config.to_dict()))[k] == v for k, v in settings.items())
        build_model(resolve(config, LeaveLastOut(data)), 5)
    with pytest.raises(ValueError, match="There is no preset `sasrek`. There are: default, large, sasrec"):
        preset("sasrek")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("width", 16),
        ("num_blocks", 1),
        ("num_heads", 4),
        ("hidden_dim", 5),
        ("mlp_dims", (7,)),
        ("max_length", 9),
        ("dropout_rate", 0.9),
        ("precision", "bfloat16"),
        ("block", "hstu"),
        ("block", "lstm"),
        ("calendar", True),
        ("attention_dropout_rate", 0.8),
        ("mask_rate", 0.3),
        ("feature_dropout_rate", 0.3),
        ("positions", ("absolute",)),
        ("similarity", "dot"),
    ],
)
def test_every_field_of_the_model_changes_it(small_config, name, value):
    def describe(config):
        model = build_model(config, 5)
        weights = [(w.path.split("/")[-1], w.shape) for w in model.weights]
        return weights, model.sequence_tower.get_config(), model.item_tower.get_config()

    assert describe(dataclasses.replace(small_config, **{name: value})) != describe(small_config)


def test_features_go_to_the_tower_that_reads_them():
    config = Config(width=8, num_blocks=1, num_heads=1, dropout_rate=0.0)
    kind, device, age = (Feature(name, "category", values=("a", "b")) for name in ("kind", "device", "age"))
    model = build_model(config, 5, {"events": [kind], "context": [device, kind], "users": [age]})
    assert model.sequence_tower.event_features == {"kind": kind.spec}
    assert model.sequence_tower.context_features == {f.name: f.spec for f in (device, kind, age)}
    assert model.item_tower.content is None
    plain = build_model(config, 5)
    assert not plain.sequence_tower.reads_features
