"""Rules over the columns of events, in short texts: which events are targets, and how much each counts."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence

import numpy as np

from tfrec.data.arrays import pieces
from tfrec.data.features import Feature
from tfrec.data.kinds import meant
from tfrec.data.prepared import PreparedData
from tfrec.data.rows import NUMBER
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, OOV_INDEX, PAD_INDEX

COMPARISONS: dict[str, Callable] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
"""Longer signs first."""


def is_target(data: PreparedData, rules: Sequence[str]) -> np.ndarray:
    """Bool, shape `(num_events,)`: the events for which all rules hold.

    `event_type=purchase,cart` holds for the two values of a category, `event_type!=view` for all values but one. `rating>=3` holds
    for numbers, also those of a category of numbers. `=` and `!=` work for both, `>`, `>=`, `<` and `<=` for numbers. No rule
    holds for a missing value, nor for a value that is unknown because it is rare, but for `!=`.

    >>> data = PreparedData.from_histories(["abc"])
    >>> is_target(data, [])
    array([ True,  True,  True])

    Args:
        data: `PreparedData` with `event_columns`.
        rules: texts, `COLUMN`, a sign and a value, or several values with commas between them.
    Raises:
        ValueError: a text is no such rule, or names a column or a value that the data does not have.
    """
    found = np.ones(data.num_events, bool)
    for rule in rules:
        name, sign, text = _parts(data, rule, tuple(COMPARISONS), "--target")
        feature, values = _feature(data, name), data.event_columns[name]
        wanted = [value.strip() for value in text.split(",")]
        limits = np.zeros(0, np.float32)
        table: np.ndarray | None  # whether the rule holds for each code of a category
        if feature.kind == "category" and sign in ("=", "!="):
            codes = [_code(feature, value, rule, "--target") for value in wanted]
            table = np.isin(np.arange(FIRST_ITEM_INDEX + len(feature.values)), codes) == (sign == "=")
            table[PAD_INDEX], table[OOV_INDEX] = False, sign == "!="  # an unknown value is none of the known ones
        else:
            limits = np.array([_number(limit, rule, "--target") for limit in wanted], np.float32)  # as a log's numbers
            if len(limits) > 1 and sign not in ("=", "!="):
                raise ValueError(f"--target {rule!r}: {sign} takes one number. Received: {text!r}.")
            numbers = _numbers_of(feature, rule, "--target")
            table = None if numbers is None else _compare(numbers, sign, limits)
        for part in pieces(data.num_events):
            given = np.asarray(values[part])
            found[part] &= _compare(given, sign, limits) if table is None else table[given]
    return found


def _compare(numbers: np.ndarray, sign: str, limits: np.ndarray) -> np.ndarray:
    """Bool: whether numbers, float32, are in a relation to one of some limits; with `!=`, to all of them."""
    join = np.logical_and if sign == "!=" else np.logical_or
    return join.reduce([COMPARISONS[sign](numbers, limit) for limit in limits]) & ~np.isnan(numbers)


def event_weights(data: PreparedData, rules: Sequence[str]) -> np.ndarray:
    """Float32, shape `(num_events,)`: the product of what each rule gives an event.

    `quantity`, the name of a column of numbers, gives the number, and 1 where it is missing. `event_type:purchase=3,click=0.5`
    gives the weights of values of a category, and 1 to the others.

    Args:
        data: `PreparedData` with `event_columns`.
        rules: texts of these two forms.
    Raises:
        ValueError: a text is no such rule, names a column or a value that the data does not have, or gives a negative weight.
    """
    weight = np.ones(data.num_events, np.float32)
    for rule in rules:
        is_column = rule in data.event_columns
        name, _, text = (rule, "", "") if is_column else _parts(data, rule, (":",), "--weight")
        feature, values = _feature(data, name), data.event_columns[name]
        if is_column:
            table = _numbers_of(feature, rule, "--weight")
        else:
            if feature.kind != "category":
                raise ValueError(
                    f"--weight {rule!r}: {name!r} is a column of numbers, which has no values to weigh. Pass its name alone: the "
                    f"number is the weight."
                )
            table = np.ones(FIRST_ITEM_INDEX + len(feature.values), np.float32)
            for pair in text.split(","):
                value, sign, number = pair.rpartition("=")
                if not sign:
                    raise ValueError(f"--weight {rule!r}: {pair!r} is not VALUE=WEIGHT, such as purchase=3.")
                table[_code(feature, value.strip(), rule, "--weight")] = _number(number.strip(), rule, "--weight")
        for part in pieces(data.num_events):
            given = np.asarray(values[part])
            given = given if table is None else table[given]
            if (given < 0).any():
                raise ValueError(
                    f"--weight {rule!r}: a weight cannot be negative. Received: {float(given[given < 0][0]):g}, in column {name!r}."
                )
            weight[part] *= np.where(np.isnan(given), np.float32(1), given)
    return weight


def _parts(data: PreparedData, rule: str, signs: Sequence[str], option: str) -> tuple[str, str, str]:
    """Column, sign and the rest of a rule. Names of columns may hold signs: the longest name that fits is meant."""
    for name in sorted(data.event_columns, key=len, reverse=True):
        rest = rule.strip().removeprefix(name).lstrip() if rule.strip().startswith(name) else ""
        sign = next((sign for sign in signs if rest.startswith(sign)), "")
        if sign:
            text = rest.removeprefix(sign).strip()
            if not text:
                raise ValueError(f"{option} {rule!r}: no value follows {sign!r}.")
            return name, sign, text
    name = re.split("|".join(map(re.escape, signs)), rule)[0].strip()
    there = ", ".join(data.event_columns) or "none"
    if name in data.event_columns:
        example = "event_type=purchase or rating>=3" if option == "--target" else "quantity or event_type:purchase=3"
        raise ValueError(f"{option} {rule!r} is no rule. Pass one such as {example}.")
    raise ValueError(
        f"{option} {rule!r}: the data has no column {name!r} of events.{meant(name, list(data.event_columns))} Its columns: "
        f"{there}. `tfrec prepare --event-feature` and `--context` read some."
    )


def _feature(data: PreparedData, name: str) -> Feature:
    """What was learned of a column of events."""
    known = [*data.features.get("events", []), *data.features.get("context", [])]
    return next(feature for feature in known if feature.name == name)


def _code(feature: Feature, value: str, rule: str, option: str) -> int:
    """The number of a value of a category."""
    if value not in feature.values:
        shown = ", ".join(feature.values[:20]) + ", ..." * (len(feature.values) > 20)
        raise ValueError(
            f"{option} {rule!r}: column {feature.name!r} has no value {value!r}.{meant(value, feature.values)} Its values: "
            f"{shown or 'none'}. A value of a single event is not known."
        )
    return FIRST_ITEM_INDEX + feature.values.index(value)


def _number(text: str, rule: str, option: str) -> float:
    if not re.fullmatch(NUMBER, text):
        raise ValueError(f"{option} {rule!r}: {text!r} is no number.")
    return float(text)


def _numbers_of(feature: Feature, rule: str, option: str) -> np.ndarray | None:
    """Float32: the number of each code of a category of numbers, NaN without one; None for a column of numbers."""
    if feature.kind == "number":
        return None
    wrong = next((value for value in feature.values if not re.fullmatch(NUMBER, value)), None)
    if wrong is not None:
        raise ValueError(
            f"{option} {rule!r}: column {feature.name!r} is a category with values such as {wrong!r}, and no column of numbers."
        )
    return np.array([np.nan, np.nan, *map(float, feature.values)], np.float32)
