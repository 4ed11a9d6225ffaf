"""What decides a run."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOSSES = ("full_softmax", "sampled_softmax", "gbce", "tfrs_retrieval")

SIMILARITIES = ("dot", "cosine")
INITS = ("normal", "cooccurrence")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. Each field can be set with `tfrec train --set name=value`.

    Attributes:
        data: the prepared folder.
        max_length: how many of a history's newest items are read.
        width: width of item vectors and of the sequence tower.
        num_blocks, hidden_dim, block, positions: of `SequenceTower`.
        num_heads: of `SequenceTower`; None: a head for each 32 of the width.
        dropout_rate: of `SequenceTower`.
        attention_window: of `SequenceTower`.
        time_bias, calendar: of `SequenceTower`: read the times of events and of requests.
        attention_dropout_rate, mask_rate: of `SequenceTower`.
        mlp_dims: of `ItemTower`.
        init_stddev: of `ItemTower`: what the item table starts from.
        item_init: `normal`: that; or `cooccurrence`: as long, in the directions of `cooccurrence_vectors`. None: the second
            up to 500,000 items and 10 million events.
        similarity: of queries and candidates: `cosine`, or `dot`, which wants a `temperature` of 1.
        loss: `full_softmax`, `sampled_softmax`, `gbce` or `tfrs_retrieval`; None: the first up to 15,000 items, the second up to
            50,000, the last above.
        num_negatives: uniform negatives of a batch, for every loss but `full_softmax`.
        temperature: logits are divided by it.
        seen_weight: what the odds of items that a history holds are multiplied by in the loss; 0 leaves them out, as rankings do.
            None: 0 where events are many for each item, else 0.1.
        label_smoothing: of `FullSoftmax`.
        calibration: of `GBCE`.
        epochs: at most. None: as many as make `steps`, 12 to 60.
        steps: updates of the weights, from which `epochs` follow where they are left open. None: 11,500 of the small tower, 8,500
            of the large one.
        validate_every: epochs from one validation to the next; the first and the last are always validated.
        patience: None, or epochs without a better validation NDCG@10 after which training stops. The last gains come as
            the learning rate falls, and the weights of the best epoch are kept anyway.
        learning_rate: the highest: it rises to it in `warmup_epochs`, then falls along a cosine to `final_rate` times that.
        warmup_epochs, final_rate: of `learning_rate`; a `final_rate` of 1 keeps it constant.
        weight_decay: of AdamW.
        clip_norm: None, or the largest norm of the gradient (without that of a lazy table): longer ones are scaled down.
        crop_rate, reorder_rate: of `PackedBatches.for_training`: augmentation.
        windows: learn from all of a long history, in windows of `max_length`, not from its newest items alone.
        batch_positions: positions in a batch.
        final_epochs: None; or train on every event, the validation and test targets too, for so many epochs of the same
            schedule: what `tfrec train --final RUN` sets.
        seed: of everything that is drawn.
        precision: what the towers compute in: `float32`, `bfloat16`, or `float16` (with loss scaling); weights and logits
            stay in float32.
        jit_compile: compile the training step with XLA.
        lazy_table: update only the rows of the item table that a batch holds; not with `full_softmax`, which touches every
            row. None: above 50,000 items, where the loss allows it.

    What is None follows from the size of the data: `suited`.
    """

    data: str
    max_length: int = 200
    width: int | None = None
    num_blocks: int | None = None
    num_heads: int | None = None
    hidden_dim: int | None = None
    dropout_rate: float | None = None
    block: str = "gated"
    positions: tuple[str, ...] = ("relative",)
    attention_window: int | None = None
    time_bias: bool = False
    calendar: bool = False
    attention_dropout_rate: float | None = 0.0
    mask_rate: float = 0.0
    mlp_dims: tuple[int, ...] = ()
    init_stddev: float = 0.02
    item_init: str | None = None
    similarity: str = "cosine"
    loss: str | None = None
    num_negatives: int = 1024
    temperature: float = 0.05
    seen_weight: float | None = None
    label_smoothing: float = 0.0
    calibration: float = 0.75
    epochs: int | None = None
    steps: int | None = None
    validate_every: int = 6
    patience: int | None = None
    learning_rate: float = 2e-3
    warmup_epochs: int = 1
    final_rate: float = 0.0
    weight_decay: float = 0.05
    clip_norm: float | None = None
    crop_rate: float = 0.0
    reorder_rate: float = 0.0
    windows: bool = True
    batch_positions: int | None = None
    final_epochs: int | None = None
    seed: int = 0
    precision: str = "float32"
    jit_compile: bool = True
    lazy_table: bool | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """A config from plain values; an unknown name, or a value of the wrong kind, raises `ValueError`."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                hint = f" Did you mean `{near[0]}`?" if near else f" There are: {', '.join(fields)}."
                raise ValueError(f"The config has no field `{name}`.{hint}")
            kinds = {
                "int": int,
                "float": (int, float),
                "str": str,
                "bool": bool,
                "tuple[int, ...]": (list, tuple),
                "tuple[str, ...]": (list, tuple),
            }
            kind, _, none = str(fields[name].type).partition(" | ")
            fits = isinstance(value, kinds[kind]) and (kind == "bool" or not isinstance(value, bool))  # type: ignore[arg-type]
            if not (fits or (none and value is None)):
                raise ValueError(f"`{name}` must be {kind}. Received: {value!r}.")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        config = cls(**plain)
        for name, known in (
            ("loss", LOSSES),
            ("similarity", SIMILARITIES),
            ("precision", PRECISIONS),
            ("item_init", INITS),
        ):
            if getattr(config, name) not in (*known, fields[name].default):
                raise ValueError(f"`{name}` must be one of {', '.join(known)}. Received: {getattr(config, name)!r}.")
        for name in (
            "max_length",
            "width",
            "num_heads",
            "epochs",
            "steps",
            "validate_every",
            "patience",
            "temperature",
            "learning_rate",
        ):
            if getattr(config, name) is not None and getattr(config, name) <= 0:
                raise ValueError(f"`{name}` must be above 0. Received: {getattr(config, name)}.")
        if not 0 <= (config.seen_weight or 0) <= 1:
            raise ValueError(f"`seen_weight` must be in [0, 1]. Received: {config.seen_weight}.")
        if config.width and config.num_heads and config.width % config.num_heads:
            raise ValueError(
                f"`num_heads` must divide `width`. Received: num_heads={config.num_heads}, width={config.width}."
            )
        return config

    @property
    def reads_times(self) -> bool:
        """Whether the model needs `timestamps` and `request_time`."""
        return self.time_bias or self.calendar

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)
