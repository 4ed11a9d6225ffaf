"""Well-known designs as plain settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_DOT = {
    "similarity": "dot",
    "temperature": 1.0,
    "attention_dropout_rate": None,
    "item_init": "normal",
    "seen_weight": 1.0,
}
_SASREC = _DOT | {
    "block": "transformer", "positions": ["absolute"], "num_blocks": 2, "num_heads": 2, "dropout_rate": 0.2, "learning_rate": 1e-3,
    "windows": False, "epochs": 60,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "large": {"num_blocks": 8, "steps": 11_500},
    "sasrec": _SASREC | {"width": 64, "hidden_dim": 64},
    "gsasrec": _SASREC | {"width": 128, "hidden_dim": 128, "loss": "gbce", "num_negatives": 256},
    "esasrec": _DOT
    | {"num_blocks": 2, "positions": ["absolute"], "loss": "sampled_softmax", "num_negatives": 256, "steps": 11_500},
    "hstu": {"num_blocks": 2, "block": "hstu", "seen_weight": 1.0, "steps": 11_500},
    "narm": _SASREC | {"width": 64, "block": "gru", "positions": [], "num_blocks": 1},
}
"""Well-known designs as plain settings; what a preset leaves out is as in `Config`."""


def preset(name: str) -> dict[str, Any]:
    """The settings of a preset, to be overridden by the user's own.

    >>> preset("sasrec")["block"]
    'transformer'
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset `{name}`. There are: {', '.join(PRESETS)}.")
    return PRESETS[name]


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`["width=128", "loss=auto"]` to values: JSON where it is JSON, text otherwise.

    >>> parse_settings(["width=128", "loss=auto", "jit_compile=false"])
    {'width': 128, 'loss': 'auto', 'jit_compile': False}
    """
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes name=value. Received: {setting!r}.")
        try:
            values[name.strip()] = json.loads(text)
        except json.JSONDecodeError:
            values[name.strip()] = text
    return values
