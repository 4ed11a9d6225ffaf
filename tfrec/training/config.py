"""The settings that decide a run."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tfrec.data.splits import REPEATS
from tfrec.data.time_split import SPLITS, check_parts
from tfrec.layers.recurrent import CELLS
from tfrec.models.sequence_tower import BLOCKS, POSITIONS

CHOICES: dict[str, tuple[str, ...]] = {
    "block": BLOCKS,
    "item_features": ("auto", "all", "none"),
    "item_init": ("normal", "cooccurrence"),
    "loss": ("full_softmax", "sampled_softmax", "gbce", "tfrs_retrieval"),
    "positions": POSITIONS,
    "precision": ("float32", "bfloat16", "float16"),
    "repeats": REPEATS,
    "similarity": ("cosine", "dot"),
    "split": SPLITS,
}
"""The values that a field of text may have; for `positions`, each of its members."""
ABOVE_0 = {
    "attention_window", "batch_positions", "clip_norm", "content_dims", "epochs", "final_epochs", "hidden_dim", "learning_rate",
    "max_length", "mlp_dims", "new_item_weight", "num_heads", "num_negatives", "patience", "steps", "steps_per_execution",
    "task_weight", "temperature", "validate_every", "width",
}  # fmt: skip
FROM_0 = {"init_stddev", "num_blocks", "seed", "warmup_epochs", "weight_decay"}
FROM_0_BELOW_1 = {
    "attention_dropout_rate", "cold_items", "dropout_rate", "feature_dropout_rate", "id_dropout_rate", "label_smoothing",
    "mask_rate",
}  # fmt: skip
FROM_0_TO_1 = {"calibration", "crop_rate", "final_rate", "reorder_rate", "seen_weight"}
KINDS: dict[str, tuple[type, ...]] = {
    "int": (numbers.Integral,),
    "float": (numbers.Real,),
    "str": (str,),
    "bool": (bool,),
    "tuple[int, ...]": (list, tuple),
    "tuple[str, ...]": (list, tuple),
}

MODEL_FIELDS = (
    "max_length", "width", "num_blocks", "num_heads", "hidden_dim", "dropout_rate", "block", "positions", "attention_window",
    "time_bias", "calendar", "attention_dropout_rate", "mask_rate", "mlp_dims", "init_stddev", "item_init", "item_features",
    "content_dims", "id_dropout_rate", "feature_dropout_rate", "similarity", "precision", "task", "task_weight",
)  # fmt: skip
"""The fields that describe the two towers and the second head; a model that `train` is given takes their place."""
LOSS_FIELDS = ("loss", "num_negatives", "temperature", "seen_weight", "label_smoothing", "calibration")
"""The fields that describe the loss; a loss that `train` is given takes their place."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a training. Fields left at `None` are filled in from the size of the data; see `resolve`.

    Each field can also be set with `tfrec train --set name=value`.

    >>> Config(width=64, loss="full_softmax").width
    64
    >>> Config(loss="full-softmax")
    Traceback (most recent call last):
    ValueError: `loss` must be one of full_softmax, sampled_softmax, gbce, tfrs_retrieval. Received: 'full-softmax'.

    Args:
        max_length: int, the newest items of a history that the model reads. Default: 200.
        width: int, width of item vectors and of the sequence tower. Default: 64 for few events, 128 for many.
        num_blocks: int, attention blocks; see `SequenceTower`. Default: 2 for few events, 3 for many.
        num_heads: int, attention heads; must divide `width`. Default: one head for each 32 of `width`.
        hidden_dim: int, width of the feed-forward layers. Default: four times `width`.
        dropout_rate: float, dropout of the sequence tower. Default: 0.5 for few or sparse events, less for many.
        block: str, kind of block; see `SequenceTower`. Default: `"gated"`.
        positions: tuple of str, how the tower knows the order of items; see `SequenceTower`. Default: `("relative",)`.
        attention_window: int, the newest positions that a position sees. Default: all.
        time_bias: bool, attention reads the times of events and of requests. Default: False.
        calendar: bool, the tower reads hour and weekday of a request. Default: False.
        attention_dropout_rate: float, dropout of attention weights; `None` means `dropout_rate`. Default: 0.
        mask_rate: float, share of a history's items that training hides. Default: 0.
        mlp_dims: tuple of int, hidden widths of an MLP on the item table; see `ItemTower`. Default: no MLP.
        init_stddev: float, standard deviation of the item table's first values. Default: 0.02.
        item_init: str, `"normal"` starts the item table at random; `"cooccurrence"` keeps the norms and takes the directions from
            `cooccurrence_vectors`. Default: co-occurrence up to 500,000 items and 10 million events.
        item_features: str, `"all"`: items are also embedded by the features of the data, see `docs/features.md`; `"none"`: by their
            ids alone; `"auto"`: by features where the data has some. Default: `"auto"`.
        content_dims: tuple of int, hidden widths of the MLP on the features; see `FeatureEmbedding`. Default: no MLP.
        id_dropout_rate: float, share of the items whose id training leaves out; see `ItemTower`. Default: 0.1 with features.
        feature_dropout_rate: float, how much of the features of events, requests and users training hides, so that a request may
            leave some out; see `FeatureDropout`. Default: 0.1.
        new_item_weight: float, the odds of new items, which content alone stands for, are multiplied by about this; see
            `new_item_row`. Default: 2.5.
        cold_items: float, share of the catalogue that is held out with all its events, to measure how new items are recommended;
            see `ColdItems`. Default: 0.
        split: str, what validation and test hold out: `"last"`, the last two events of each user, see `LeaveLastOut`; `"time"`, the
            newest events of the log, see `TimeSplit`. Default: `"last"`.
        test: str, with `split="time"` the test part: `"7d"`, `"2024-05-01"` or a share such as `"0.1"`. Default: none.
        validation: str, the same for the validation part. Default: as `test`.
        similarity: str, score of a query and a candidate: `"cosine"` or `"dot"`. Default: `"cosine"`.
        repeats: str, `"exclude"` never recommends what stands in the history; `"allow"` learns, validates, evaluates and exports a
            ranking of the whole catalogue, for users who come back to the same items. Default: `"exclude"`.
        targets: tuple of str, which events of the data are to be found, such as `("event_type=purchase",)`; see `is_target`. The
            others stay in histories. Default: all.
        weights: tuple of str, how much each event counts in training, such as `("event_type:purchase=3",)`; see `event_weights`.
            Default: all alike.
        task: str, a column of events that a second head learns to predict for an item after a history: its number, such as a
            rating, or its most likely value, such as the type of the event; see `TaskHead`. Default: none.
        task_weight: float, the weight of the second head's loss beside that of the ranking. Default: 0.5.
        loss: str, `"full_softmax"`, `"sampled_softmax"`, `"gbce"` or `"tfrs_retrieval"`. Default: by the size of the catalogue:
            the first up to 15,000 items, the second up to 50,000, the last above.
        num_negatives: int, uniform negatives of a batch; `full_softmax` has none. Default: 1,024.
        temperature: float, logits are divided by it. Default: 0.05 for cosines, 1 for dot products.
        seen_weight: float in [0, 1], the loss multiplies the odds of items in the history by it; 0 leaves them out, as a ranking
            does. `repeats="allow"` needs 1. Default: 0 where items have many events, else 0.1; 1 with `repeats="allow"`.
        label_smoothing: float, see `FullSoftmax`. Default: 0.
        calibration: float, see `GBCE`. Default: 0.75.
        epochs: int, number of passes over the data. Default: as many as make `steps`, from 12 to 60.
        steps: int, updates of the weights; decides `epochs` where that is `None`. Default: 11,500 of a small tower, 8,500 of a
            large one.
        validate_every: int, epochs from one validation to the next; the first and the last epoch are always validated.
            Default: 6.
        patience: int, epochs without a better validation NDCG@10 after which training stops. Default: training never stops
            early, because the last gains come as the learning rate falls; the weights of the best epoch are kept anyway.
        learning_rate: float, highest learning rate: it rises linearly in `warmup_epochs`, then falls along a cosine to `final_rate`
            times this value. Default: 0.002.
        warmup_epochs: int, see `learning_rate`. Default: 1.
        final_rate: float, see `learning_rate`; 1 keeps the rate constant. Default: 0.
        weight_decay: float, weight decay of AdamW. Default: 0.05.
        clip_norm: float, longest norm of the gradient (without that of a lazy table); longer ones are scaled down.
            Default: no limit.
        crop_rate: float, augmentation; see `PackedBatches`. Default: 0.
        reorder_rate: float, augmentation; see `PackedBatches`. Default: 0.
        windows: bool, learn from all of a long history, in windows of `max_length`; False reads its newest items alone.
            Default: True.
        batch_positions: int, positions in a batch. Default: about 500 batches an epoch, 512 to 4,096 positions.
        final_epochs: int, train on every event, validation and test targets too, for this many epochs of the schedule;
            `tfrec train --final RUN` sets it. Default: hold out two events of each user.
        seed: int, seed of everything random. Default: 0.
        precision: str, dtype in which the towers compute: `"float32"`, `"bfloat16"` or `"float16"` (with loss scaling). Weights and
            logits stay in float32. Default: `"float32"`.
        jit_compile: bool, compile the training step with XLA. Default: True; False for a model of your own, which may hold
            operations that XLA refuses.
        steps_per_execution: int, training steps between two returns to Python; see `keras.Model.compile`. Default: 1.
        lazy_table: bool, update only the rows of the item table that a batch holds; `full_softmax` touches every row and
            refuses it. Default: above 50,000 items, where the loss allows it.
    Raises:
        ValueError: a value is of the wrong kind or out of its range, or two values exclude each other. The message names the
            field, the rule and the value.
    """

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
    item_features: str = "auto"
    content_dims: tuple[int, ...] = ()
    id_dropout_rate: float | None = None
    feature_dropout_rate: float = 0.1
    new_item_weight: float = 2.5
    cold_items: float = 0.0
    split: str = "last"
    test: str | None = None
    validation: str | None = None
    similarity: str = "cosine"
    repeats: str = "exclude"
    targets: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    task: str | None = None
    task_weight: float = 0.5
    loss: str | None = None
    num_negatives: int = 1024
    temperature: float | None = None
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
    jit_compile: bool | None = None
    steps_per_execution: int = 1
    lazy_table: bool | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check_kind(field, value)
            if isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
            for one in value if isinstance(value, list | tuple) else (value,):
                _check_value(field.name, one)
        self._check_together()

    def _check_together(self) -> None:
        """Raise for values that exclude each other."""
        if self.width and self.num_heads and self.width % self.num_heads:
            raise ValueError(
                f"`num_heads` must divide `width`. Received: num_heads={self.num_heads}, width={self.width}."
            )
        if self.lazy_table and self.loss == "full_softmax":
            raise ValueError("`lazy_table` needs a sampled loss: the full softmax touches every row of the item table.")
        if self.lazy_table and self.precision == "float16":
            raise ValueError("`lazy_table` has no loss scaling, which float16 needs. Use --set precision=bfloat16.")
        if self.attention_window and self.time_bias:
            raise ValueError("`time_bias` needs every pair of positions; leave out `attention_window`.")
        if self.block in CELLS and (self.attention_window or "rotary" in self.positions):
            raise ValueError(
                f"`block={self.block}` has neither an `attention_window` nor rotary positions; leave them out."
            )
        if self.repeats == "allow" and self.seen_weight not in (None, 1):
            raise ValueError(
                f"`repeats=allow` ranks the items of the history like others, and so must the loss: leave out `seen_weight` or set "
                f"it to 1. Received: {self.seen_weight}."
            )
        check_parts(self.split, self.test, self.validation)
        if self.split == "time" and self.cold_items:
            raise ValueError("`cold_items` are held out of the split `last`: leave out `split` or `cold_items`.")
        if self.epochs and self.final_epochs and self.final_epochs > self.epochs:
            raise ValueError(f"`final_epochs` is at most `epochs`. Received: {self.final_epochs} and {self.epochs}.")

    @property
    def new_item_boost(self) -> float:
        """What `new_item_weight` adds to a score."""
        return (self.temperature or 1.0) * math.log(self.new_item_weight)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """A config from plain values, such as those of a JSON file.

        >>> Config.from_dict({"width": 64}).width
        64

        Raises:
            ValueError: a name is unknown (the message offers the nearest), or as for `Config`.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f" Did you mean `{near[0]}`?" if near else f" There are: {', '.join(names)}."
                raise ValueError(f"The config has no field `{name}`.{hint}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, by name."""
        return dataclasses.asdict(self)

    def require_defaults(self, names: tuple[str, ...], given: str) -> None:
        """Raise where a field is set although `given`, an argument of `train`, takes its place."""
        for field in dataclasses.fields(self):
            if field.name in names and getattr(self, field.name) != field.default:
                raise ValueError(f"`{field.name}` describes the {given}, which is given: leave it out of the config.")


def _check_kind(field: dataclasses.Field, value: Any) -> None:
    """Raise unless a value has the type that its field is annotated with."""
    kind, _, none = str(field.type).partition(" | ")
    fits = isinstance(value, KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
    if kind.startswith("tuple") and fits:
        member = kind.removeprefix("tuple[").partition(",")[0]
        fits = all(isinstance(one, KINDS[member]) and not isinstance(one, bool) for one in value)
    if not (fits or (none and value is None)):
        raise ValueError(f"`{field.name}` must be {kind}. Received: {value!r}.")


def _check_value(name: str, value: Any) -> None:
    """Raise unless a value, or the member of a tuple, is one of the choices or in the range of its field."""
    if value is None:
        return
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"`{name}` must be one of {', '.join(CHOICES[name])}. Received: {value!r}.")
    for names, fits, rule in (
        (ABOVE_0, lambda v: v > 0, "above 0"),
        (FROM_0, lambda v: v >= 0, "0 or more"),
        (FROM_0_BELOW_1, lambda v: 0 <= v < 1, "in [0, 1)"),
        (FROM_0_TO_1, lambda v: 0 <= v <= 1, "in [0, 1]"),
    ):
        if name in names and not (fits(value) and value < float("inf")):
            raise ValueError(f"`{name}` must be {rule}. Received: {value}.")
