"""From a config to a run folder, and back to a model.

config.json        everything needed to rebuild
model.weights.h5   the weights of the epoch with the best validation NDCG@10
vocabulary.json    item ids in index order
items.parquet      what is known of each item
history.csv        a row for each epoch
metrics.json       the best epoch and its validation metrics
logs/              for TensorBoard
checkpoint.npz     everything that `--resume` needs, after the last finished epoch
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from tfrec.cooccurrence import cooccurrence_vectors
from tfrec.evaluation import evaluate_model, recommend
from tfrec.losses import GBCE, FullSoftmax, SampledSoftmax
from tfrec.prepared import ITEMS, PreparedData
from tfrec.sequences import PackedBatches
from tfrec.splits import LeaveLastOut
from tfrec.towers import ItemTower, SequenceTower
from tfrec.two_tower import TwoTower
from tfrec.vocabulary import FIRST_ITEM_INDEX, Vocabulary

CONFIG, WEIGHTS, CHECKPOINT = "config.json", "model.weights.h5", "checkpoint.npz"
HISTORY, METRICS = "history.csv", "metrics.json"
MONITOR = "val_ndcg@10"
SHOWN = (MONITOR, "val_hr@10")
FULL_SOFTMAX_ITEMS, DENSE_TABLE_ITEMS = 15_000, 50_000
"""The largest catalogues that are trained with the full softmax, and with all of the item table in each update, unless told
otherwise."""
COUNTED_ITEMS = 500_000
"""The largest catalogue whose item table starts from co-occurrence unless told otherwise: that takes minutes there."""
SMALL_DATA, LARGE_DATA = 400_000, 10_000_000
"""Training events below and above which `suited` chooses another size and dropout."""
SPARSE_DATA = 100
"""Training events for each item of the catalogue below which `suited` drops as much as for few events."""
LOSSES = ("full_softmax", "sampled_softmax", "gbce", "tfrs_retrieval")

SIMILARITIES = ("dot", "cosine")
INITS = ("normal", "cooccurrence")
PRECISIONS = ("float32", "bfloat16", "float16")

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


class DivergedError(Exception):
    """The loss became NaN or infinite."""


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


def final_config(run: Run) -> Config:
    """The config that refits a run: on every event, for as many epochs as its validation chose."""
    return dataclasses.replace(run.config, final_epochs=run.metrics["best_epoch"])


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


def suited(config: Config, data: PreparedData) -> Config:
    """The config with everything that it leaves open decided from the size of the data.

    Few events want a small tower and much dropout, many a larger one and, where they are many for each item, less. Batches are
    small enough for about 500 steps an epoch, and epochs are as many as make `steps`: fewer of the large tower, whose each
    takes longer: `docs/quality.md` has the measurements.
    """
    split = LeaveLastOut(data)
    each = (split.train_ends - data.offsets[:-1] - 1).clip(0)
    events = max(1, int(each.sum() if config.windows else each.clip(0, config.max_length).sum()))
    is_small = events < SMALL_DATA
    is_sparse = events < SPARSE_DATA * data.num_items
    is_large, is_huge = data.num_items > FULL_SOFTMAX_ITEMS, data.num_items > DENSE_TABLE_ITEMS
    width = config.width or (64 if is_small else 128)
    steps = config.steps or (11_500 if is_small else 8_500)
    batch_positions = config.batch_positions or min(4096, max(512, 2 ** round(math.log2(events / 500))))
    automatic: dict[str, Any] = {
        "width": width,
        "num_blocks": 2 if is_small else 3,
        "num_heads": next(n for n in range(max(1, width // 32), 0, -1) if width % n == 0),
        "dropout_rate": 0.5 if is_small or is_sparse else 0.3 if events < LARGE_DATA else 0.1,
        "batch_positions": batch_positions,
        "seen_weight": 0.1 if is_small or is_sparse else 0.0,
        "item_init": "cooccurrence" if data.num_items <= COUNTED_ITEMS and events < LARGE_DATA else "normal",
        "epochs": min(60, max(12, round(steps * batch_positions / events))),
        "loss": "tfrs_retrieval" if is_huge else "sampled_softmax" if is_large else "full_softmax",
    }
    config = dataclasses.replace(config, **{k: v for k, v in automatic.items() if getattr(config, k) is None})
    if config.lazy_table is None:
        config = dataclasses.replace(config, lazy_table=is_huge and config.loss != "full_softmax")
    return config


def build_model(config: Config, num_items: int) -> TwoTower:
    """The model that a `suited` config describes, built, with fresh weights."""
    policy = keras.dtype_policies.DTypePolicy(
        "float32" if config.precision == "float32" else f"mixed_{config.precision}"
    )
    if config.width is None or config.num_blocks is None or config.num_heads is None or config.dropout_rate is None:
        raise ValueError("The config leaves the model's size or dropout open: decide them with `suited(config, data)`.")
    own: dict[str, Any] = {"normalize": config.similarity == "cosine", "dtype": policy}
    items = ItemTower(
        num_items, config.width, config.mlp_dims, init_stddev=config.init_stddev, name="item_tower", **own
    )
    sequence = SequenceTower(
        config.max_length,
        config.num_blocks,
        config.num_heads,
        config.hidden_dim,
        config.dropout_rate,
        config.block,
        config.positions,
        config.attention_window,
        config.time_bias,
        config.calendar,
        config.attention_dropout_rate,
        config.mask_rate,
        name="sequence_tower",
        **own,
    )
    model = TwoTower(items, sequence, name="two_tower")
    model.build()
    return model


def compile_model(config: Config, data: PreparedData) -> tuple[TwoTower, PackedBatches]:
    """The model that a config describes, compiled, and the batches it is to be fitted on: all of `train` but the fitting.

    What the config leaves open is decided by `suited`.

    Raises:
        ValueError: the data has no pair of events to learn from, or no user to validate on.
    """
    split = LeaveLastOut(data, 0 if config.final_epochs else 2)
    if not len(split.users):
        raise ValueError(
            f"`{config.data}` has no user with 3 events: none to validate on. A sequential model needs histories."
        )
    config = suited(config, data)
    assert config.epochs is not None
    assert config.batch_positions is not None
    if config.reads_times and not data.timestamp.any():
        raise ValueError(f"`time_bias` and `calendar` need times, and `{config.data}` has none.")
    keras.utils.set_random_seed(config.seed)
    model = build_model(config, data.num_items)
    if config.item_init == "cooccurrence":
        _start_from_counts(model.item_tower, split)
    batches = PackedBatches.for_training(
        split,
        max_length=config.max_length,
        batch_positions=config.batch_positions,
        seed=config.seed,
        windows=config.windows,
        crop_rate=config.crop_rate,
        reorder_rate=config.reorder_rate,
        has_times=config.reads_times,
    )
    steps = len(batches)
    if not steps:
        raise ValueError(f"`{config.data}` has no user with 4 events: no pair of items is left to learn from.")
    warmup = min(config.warmup_epochs, config.epochs - 1)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else config.learning_rate,
        steps * (config.epochs - warmup),
        alpha=config.final_rate,
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=steps * warmup,
    )
    loss = _build_loss(config, split)
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm)
    if config.precision == "float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    if config.lazy_table:
        if isinstance(loss, FullSoftmax):
            raise ValueError("`lazy_table` needs a sampled loss: the full softmax touches every row of the item table.")
        if config.precision == "float16":
            raise ValueError("`lazy_table` has no loss scaling, which float16 needs. Use --set precision=bfloat16.")
        from tfrec.lazy_table import LazyAdamW, LazyTableTrainer

        model.compile(optimizer, loss, jit_compile=False)  # the trainer compiles the part that XLA can
        of_table = LazyAdamW(model.item_tower.table, rate, config.weight_decay)
        model.table_trainer = LazyTableTrainer(model, of_table, config.jit_compile)
        optimizer.build(model.table_trainer.dense)
    else:
        model.compile(optimizer, loss, jit_compile=config.jit_compile)
        optimizer.build(model.trainable_variables)
    return model, batches


def _start_from_counts(tower: ItemTower, split: LeaveLastOut) -> None:
    """Turn the rows of the item table to where `cooccurrence_vectors` point; those of items without neighbours stay."""
    table = tower.table.numpy()
    vectors = cooccurrence_vectors(*split.train_part(), tower.num_items, tower.width)
    known = vectors.any(axis=1)
    table[FIRST_ITEM_INDEX:][known] = vectors[known] * (tower.init_stddev * tower.width**0.5)
    tower.table.assign(table)


def _build_loss(config: Config, split: LeaveLastOut):
    name, seen_weight = config.loss, config.seen_weight
    assert seen_weight is not None
    if name == "full_softmax":
        return FullSoftmax(config.temperature, config.label_smoothing, seen_weight)
    if name == "sampled_softmax":
        return SampledSoftmax(config.num_negatives, config.temperature, config.seed, seen_weight)
    if name == "gbce":
        return GBCE(config.num_negatives, config.calibration, config.temperature, config.seed, seen_weight)
    from tfrec.tfrs_task import TfrsRetrieval

    counts = np.bincount(split.train_part()[0] - FIRST_ITEM_INDEX, minlength=split.data.num_items)
    return TfrsRetrieval(counts, config.num_negatives, config.temperature, config.seed, seen_weight)


@dataclass
class Run:
    """A trained model with what it takes to use it. `Run.open` is the one function that rebuilds a model from a folder.

    Attributes:
        folder: the run folder.
        config: how it was trained.
        model: with the best weights.
        vocabulary: its catalogue.
        items: the columns of `items.parquet`: `item_id`, `num_events`, perhaps `title` and others.
        metrics: what `metrics.json` holds.
    """

    folder: Path
    config: Config
    model: TwoTower
    vocabulary: Vocabulary
    items: dict[str, list]
    metrics: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Run:
        """Rebuild the model of a run folder.

        Raises:
            ValueError: the folder is no run, or has no weights yet.
        """
        import pyarrow.parquet

        folder = Path(folder)
        if not (folder / CONFIG).is_file():
            raise ValueError(
                f"`{folder}` is not a run: it has no {CONFIG}. Make one with `tfrec train DATA --out {folder}`."
            )
        if not (folder / WEIGHTS).is_file():
            raise ValueError(
                f"`{folder}` has no weights yet: no epoch was finished. Go on with `tfrec train --resume`."
            )
        config = Config.from_dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        vocabulary = Vocabulary.load(folder)
        # the weights are loaded: to draw a large table first would take memory for three
        model = build_model(dataclasses.replace(config, init_stddev=0.0), len(vocabulary))
        model.load_weights(folder / WEIGHTS)
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8")) if (folder / METRICS).is_file() else {}
        return cls(folder, config, model, vocabulary, pyarrow.parquet.read_table(folder / ITEMS).to_pydict(), metrics)

    def recommend(
        self, history: Sequence[str], k: int = 10, timestamps: Sequence[int] = (), request_time: int = 0
    ) -> list[tuple[str, float]]:
        """The `k` best unseen items after `history` (item ids, oldest first), with their scores, best first.

        A model with `time_bias` reads when each item was and when this is asked, in seconds since 1970.
        """
        times = np.asarray(timestamps if len(timestamps) else [0] * len(history), np.int64)
        indexes, counts = self.vocabulary.encode(history), self.items["num_events"]
        items, scores = recommend(self.model, [indexes], k, counts, [times], [request_time])
        return [(i, s) for i, s in zip(self.vocabulary.decode(items[0]), scores[0].tolist(), strict=True) if i]

    def data(self) -> PreparedData:
        """The prepared data it was trained on.

        Raises:
            ValueError: it is gone, or has another catalogue by now.
        """
        data = PreparedData.open(self.config.data)
        if data.vocabulary.item_ids != self.vocabulary.item_ids:
            raise ValueError(
                f"`{self.config.data}` has another catalogue than the one `{self.folder}` was trained on. "
                f"Train again, or evaluate on the data of the run."
            )
        return dataclasses.replace(data, vocabulary=self.vocabulary)  # a large one is held once


def write_whole(path: Path, write) -> None:
    """Call `write(aside)`, then rename: a reader sees the old file or the new one, never half of one."""
    aside = path.with_name(f".{path.name}.partial{''.join(path.suffixes)}")
    write(aside)
    aside.replace(path)


class _Progress(keras.callbacks.Callback):
    """After each epoch: validate if it is time, keep the best weights, write the checkpoint; stop when patience ends."""

    def __init__(self, folder: Path, split: LeaveLastOut, batches: PackedBatches, config: Config) -> None:
        super().__init__()
        self.folder, self.split, self.batches, self.config = folder, split, batches, config
        self.history: list[dict[str, float]] = []

    @property
    def best(self) -> dict[str, float]:
        """The history row of the best epoch; of the last, where nothing is validated."""
        if self.config.final_epochs:
            return self.history[-1]
        return max((row for row in self.history if MONITOR in row), key=lambda row: row[MONITOR])

    @property
    def is_out_of_patience(self) -> bool:
        """Whether `patience` epochs have passed since the best."""
        if not self.config.patience or not self.history:
            return False
        return len(self.history) - self.best["epoch"] >= self.config.patience

    def _state(self) -> list:
        """Every variable that the next epoch depends on: weights, random generators (also of the loss), optimizer."""
        generator = getattr(self.model.loss, "seed_generator", None)
        lazy = self.model.table_trainer.optimizer.variables if self.model.table_trainer else []
        optimizer = self.model.optimizer.variables
        return [*self.model.variables, *optimizer, *lazy, *([generator.state] if generator else [])]

    def restore(self) -> None:
        """Load the checkpoint into the model."""
        with np.load(self.folder / CHECKPOINT) as saved:
            self.history = json.loads(str(saved["history"]))
            for i, variable in enumerate(self._state()):
                variable.assign(saved[f"arr_{i}"])

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(float(logs["loss"])):
            epoch = len(self.history)
            kept = (
                f"The run keeps the weights of epoch {self.best['epoch']}."
                if self.history
                else "No epoch was finished."
            )
            raise DivergedError(
                f"The loss became {float(logs['loss'])} in epoch {epoch + 1}, step {batch + 1}. Lower "
                f"learning_rate (--set learning_rate=...), or train without --mixed-precision. {kept}"
            )

    def on_epoch_end(self, epoch, logs=None):
        trained, epoch = time.perf_counter(), epoch + 1
        seconds = trained - self._begin
        row = {"epoch": epoch, **logs, "seconds": seconds, "positions_per_second": self.batches.num_positions / seconds}
        is_validated = epoch in (1, self.config.epochs) or epoch % self.config.validate_every == 0
        if is_validated and not self.config.final_epochs:
            metrics = evaluate_model(self.model, self.split, "validation")
            row |= {f"val_{name}": value for name, value in metrics.items()}
            row["val_seconds"] = time.perf_counter() - trained
            logs |= {name: row[name] for name in SHOWN}  # to the progress bar and TensorBoard
        self.history.append({name: float(value) for name, value in row.items()} | {"epoch": epoch})
        if self.best is self.history[-1]:
            write_whole(self.folder / WEIGHTS, self.model.save_weights)
        arrays = [v.numpy() for v in self._state()]
        write_whole(self.folder / CHECKPOINT, lambda path: np.savez(path, *arrays, history=json.dumps(self.history)))
        write_whole(self.folder / HISTORY, self._write_history)
        if MONITOR in row and self.is_out_of_patience:
            self.model.stop_training = True

    def _write_history(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.history[0]))  # the first epoch is validated: it has every column
            writer.writeheader()
            writer.writerows(self.history)


def train(
    config: Config,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Run:
    """Train a model and write its run folder.

    The weights kept are those of the epoch with the best validation NDCG@10. Ctrl-C ends training and leaves a usable run.

    Args:
        config: how.
        out: the run folder.
        resume: go on after the last finished epoch of `out`, with its config; the result is that of a run that was never
            interrupted.
        overwrite: replace `out` where it exists.
        callbacks: further Keras callbacks.
    Raises:
        DivergedError: the loss became NaN or infinite.
        ValueError: the data has no pair of events to learn from, or no user to validate on; or there is nothing to resume.
        FileExistsError: `out` exists.
    """
    out = Path(out)
    if resume:
        if not (out / CONFIG).is_file():
            raise ValueError(f"There is nothing to resume in `{out}`: it has no {CONFIG}. Leave out --resume.")
        config = Config.from_dict(json.loads((out / CONFIG).read_text(encoding="utf-8")))
    elif out.exists() and any(out.iterdir()) and not overwrite:
        raise FileExistsError(
            f"`{out}` exists. Pass --resume to go on, --overwrite to replace it, or choose another folder."
        )
    elif out.exists() and any(out.iterdir()) and not (out / CONFIG).is_file():
        raise FileExistsError(f"`{out}` is not a run, so --overwrite does not replace it. Choose another folder.")
    data = PreparedData.open(config.data)
    config = suited(config, data)
    if (config.final_epochs or 0) > (config.epochs or 0):
        raise ValueError(f"`final_epochs` is at most `epochs`. Received: {config.final_epochs} and {config.epochs}.")
    model, batches = compile_model(config, data)

    progress = _Progress(out, LeaveLastOut(data), batches, config)
    progress.set_model(model)
    if resume:
        if (out / CHECKPOINT).is_file():
            progress.restore()
    else:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        config = dataclasses.replace(config, data=str(Path(config.data).resolve()))
        (out / CONFIG).write_text(json.dumps(config.to_dict(), indent=2), encoding="utf-8")
        data.vocabulary.save(out)
        shutil.copy(data.folder / ITEMS, out / ITEMS)  # type: ignore[operator]
    try:
        if not progress.is_out_of_patience:
            model.fit(
                batches.dataset(),
                epochs=config.final_epochs or config.epochs,
                initial_epoch=len(progress.history),
                shuffle=False,
                verbose=1 if sys.stdout.isatty() else 2,
                callbacks=[progress, keras.callbacks.TensorBoard(out / "logs", write_graph=False), *callbacks],
            )
    except KeyboardInterrupt:
        if not progress.history:
            raise
        print(f"\nStopped. The run keeps the weights of epoch {progress.best['epoch']}.", file=sys.stderr)
    best = progress.best
    metrics: dict[str, Any] = {
        "best_epoch": best["epoch"],
        "epochs": len(progress.history),
        "seconds": sum(row["seconds"] + row.get("val_seconds", 0) for row in progress.history),
    }
    if not config.final_epochs:
        metrics["validation"] = {
            name.removeprefix("val_"): value
            for name, value in best.items()
            if name.startswith("val_") and name != "val_seconds"
        }
    write_whole(out / METRICS, lambda path: path.write_text(json.dumps(metrics, indent=2), encoding="utf-8"))
    return Run.open(out)
