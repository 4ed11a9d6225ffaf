"""The model: two towers and a loss between them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from tfrec.data.batches import prepare_inputs
from tfrec.data.features import input_name
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.layers.pooling import newest
from tfrec.models.ranking_metrics import RankingMetric, target_ranks
from tfrec.models.tasks import TaskHead
from tfrec.models.towers import AbstractItemTower, AbstractSequenceTower, check_towers

LOSS_SIGNATURE = "loss(query, target, inputs, item_tower, sample_weight) -> (weighted sum, sum of weights)"
LOSS_ARGUMENTS = ("query", "target", "inputs", "item_tower", "sample_weight")


@keras.saving.register_keras_serializable("tfrec")
class TwoTower(keras.Model):
    """A two-tower retrieval model: queries from histories, candidates from the catalogue, their dot product the score.

    `fit` learns from every position of a history at once.

    >>> import numpy as np
    >>> from tfrec.models.item_tower import ItemTower
    >>> from tfrec.models.losses import FullSoftmax
    >>> from tfrec.models.sequence_tower import SequenceTower
    >>> model = TwoTower(ItemTower(num_items=5, width=4), SequenceTower(max_length=3, num_heads=1))
    >>> model.compile("adam", FullSoftmax())
    >>> inputs = {"history": np.array([[2, 3, 4]], "int32"), "is_real": np.array([[True, True, True]])}
    >>> losses = model.fit(inputs, np.array([[3, 4, 5]], "int32"), verbose=0).history["loss"]

    Args:
        item_tower: `ItemTower`, or another `AbstractItemTower`.
        sequence_tower: `SequenceTower`, or another `AbstractSequenceTower`.
        task_head: `TaskHead`, trained with the ranking on `inputs["task"]`, `(batch, length)`: what it predicts, of the event after
            each position; see `TaskHead.mean_loss`. Weights of positions are those of the ranking alone. Default: none.
    Call arguments:
        inputs: dict of `history`, int32 `(batch, length)`, oldest first, and `is_real`, bool `(batch, length)`. Rows that pack
            several histories also have `end`, int32 `(batch, length)`; see `CausalSelfAttention`. For a tower that reads times
            also `timestamps` and `request_times`, int64 `(batch, length)`; see `TimeBias`. For one that reads features also
            `events` and `context`, dicts of encoded features `(batch, length)`; see `SequenceTower`.
        vectors: float tensor `(batch, length, width)`, the item vectors of the history, where they are at hand. Default: those of
            the item tower.
    Returns:
        Float tensor, shape `(batch, length, width)`: the query after each position.
    Raises:
        TypeError: a tower lacks something, or the head is no `TaskHead`; the message names it.
    """

    def __init__(
        self,
        item_tower: AbstractItemTower,
        sequence_tower: AbstractSequenceTower,
        task_head: TaskHead | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.autocast = False  # the towers cast what they read; float16 does not hold every number of a feature
        check_towers(item_tower, sequence_tower)
        self.item_tower = item_tower
        self.sequence_tower = sequence_tower
        if task_head is not None and not isinstance(task_head, TaskHead):
            raise TypeError(f"`task_head` must be a `tfrec.TaskHead`. Received: {task_head!r}.")
        self.task_head = task_head
        self.mean_task_loss: Any = keras.metrics.Mean(name="task_loss") if task_head else None
        self.mean_loss = keras.metrics.Mean(name="loss")
        self.ranking_metrics: list[RankingMetric] = []
        self.table_trainer: Any = None
        """A `LazyTableTrainer` takes the place of the training step of Keras, for a large item table."""
        self._class_weight: Any = None

    def build(self, input_shape=None):
        if not self.item_tower.built:
            self.item_tower.build(None)
        if not self.sequence_tower.built:
            length, width = self.sequence_tower.max_length, self.item_tower.width
            if type(self.sequence_tower).build is keras.layers.Layer.build:
                # The default `build` leaves the layers inside unbuilt until they are called.
                x, is_real = keras.KerasTensor((None, length, width)), keras.KerasTensor((None, length), "bool")
                self.sequence_tower(x, is_real=is_real)
            else:
                self.sequence_tower.build((None, None, width))
        if self.task_head is not None and not self.task_head.built:
            self.task_head.build((None, None, self.item_tower.width))

    def build_from_config(self, config):
        self.build()

    # --- training --------------------------------------------------------------------------------------------------------

    def compile(self, optimizer="adam", loss=None, *, metrics=None, loss_weights=None, weighted_metrics=None, **kwargs):
        """Configure the model for training.

        Args:
            optimizer: as for `keras.Model.compile`. Default: Adam.
            loss: `FullSoftmax`, `SampledSoftmax`, `GBCE`, `TfrsRetrieval`, or any callable
                `loss(query, target, inputs, item_tower, sample_weight) -> (weighted sum, sum of weights)`. `query` is float
                `(batch, length, width)`, `target` int `(batch, length)`, `inputs` the dict that the model was called with,
                `sample_weight` float32 `(batch, length)`, 0 at padding.
            metrics: list of `HitRate`, `NDCG` and `MRR`. Default: none.
            kwargs: `run_eagerly`, `steps_per_execution`, `jit_compile` and `auto_scale_loss`, as for `keras.Model.compile`.
        Raises:
            TypeError: the loss or a metric cannot work with this model; the message says which ones can.
        """
        _check_loss(loss)
        if loss_weights is not None or weighted_metrics is not None:
            raise TypeError(
                "A `TwoTower` has one loss and weighs its metrics: leave out `loss_weights` and `weighted_metrics`."
            )
        metrics = [] if metrics is None else list(metrics) if isinstance(metrics, list | tuple) else [metrics]
        for metric in metrics:
            if not isinstance(metric, RankingMetric):
                raise TypeError(f"`metrics` may hold tfrec's HitRate(k), NDCG(k) and MRR(). Received: {metric!r}.")
        if metrics and keras.backend.backend() != "tensorflow":
            raise ValueError(
                "Ranking metrics read the catalogue, which Keras hides from metrics on this backend: leave them out."
            )
        old = [self.__dict__.get("loss"), *self.ranking_metrics]
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        # Keras tracks nothing in `compile`, and nothing new in a model that is built.
        locked = self._tracker.locked
        self._tracker.unlock()
        for part in old:
            if isinstance(part, keras.layers.Layer | keras.metrics.Metric):
                self._tracker.untrack(part)
        self.ranking_metrics = metrics
        if isinstance(loss, keras.layers.Layer):
            self._tracker.track(loss)
        if locked:
            self._tracker.lock()

    def get_compile_config(self):
        config = super().get_compile_config()
        if config and self.ranking_metrics:
            config["metrics"] = [keras.saving.serialize_keras_object(metric) for metric in self.ranking_metrics]
        return config

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)

    @property
    def metrics(self):
        """The mean loss over positions (Keras's own weighs batches by their rows), that of the head, and the ranking metrics."""
        return [self.mean_loss, *([self.mean_task_loss] if self.task_head else []), *self.ranking_metrics]

    def fit(self, *args, class_weight: Mapping[int, float] | None = None, **kwargs):
        """Train the model, as `keras.Model.fit`.

        Args:
            sample_weight: float array, shape `(batch,)` or `(batch, length)`, weighs the positions of each row.
            class_weight: dict, weighs each position by the item index of its target. Default: 1 for all.
        """
        if class_weight != self._class_weight:
            self._class_weight = None if class_weight is None else dict(class_weight)
            self.train_function = None  # it was traced with the weights of before
        return super().fit(*args, **kwargs)

    def position_weights(self, inputs, target, sample_weight=None, training: bool = False):
        """The weight of each position: float32 `(batch, length)`, 0 at padding."""
        weight = ops.cast(inputs["is_real"], "float32")
        if sample_weight is not None:
            weight *= ops.reshape(ops.cast(sample_weight, "float32"), (ops.shape(weight)[0], -1))  # B 1 or B L
        if training and self._class_weight is not None:
            table = [self._class_weight.get(i, 1.0) for i in range(self.item_tower.num_items + FIRST_ITEM_INDEX)]
            weight *= ops.take(ops.convert_to_tensor(table, "float32"), target, axis=0)
        return weight

    def loss_of(self, query, target, inputs, items, weight, training=None, **options):
        """The loss of a batch: the weighted mean over positions, plus that of the second head, `add_loss` and regularisers.

        Args:
            query, target, inputs: see `compile`.
            items: the item tower, or a view of it whose places `target` holds.
            weight: see `position_weights`.
            options: further arguments of the loss.
        """
        total, count = self.loss(query, target, inputs, items, weight, **options)
        loss = total / ops.where(count > 0, count, 1.0)
        if self.task_head is not None:
            if "task" not in inputs:
                raise ValueError(
                    f'A model with a `task_head` learns from `inputs["task"]`, column {self.task_head.column!r} of the event after '
                    f"each position. Received: {', '.join(inputs)}."
                )
            own = self.task_head.mean_loss(query, items.candidates(target), inputs["task"], inputs["is_real"], training)
            self.mean_task_loss.update_state(own, sample_weight=ops.sum(ops.cast(inputs["is_real"], "float32")))
            loss += self.task_head.loss_weight * own
        if self.losses:
            loss += sum(ops.cast(ops.sum(part), "float32") for part in self.losses)
        self.mean_loss.update_state(loss, sample_weight=count)
        return loss

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        weight = self.position_weights(x, y, sample_weight, training)
        items = self.item_tower.in_training() if training else self.item_tower
        return self.loss_of(y_pred, y, x, items, weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self.ranking_metrics:
            choices = dict.fromkeys(metric.repeats for metric in self.ranking_metrics)
            ranks = {repeats: target_ranks(y_pred, y, x, self.item_tower, repeats) for repeats in choices}
            weight = self.position_weights(x, y, sample_weight)
            for metric in self.ranking_metrics:
                metric.update_state(*ranks[metric.repeats], self.item_tower.num_items, weight)  # type: ignore[call-arg]
        return self.get_metrics_result()

    def train_step(self, *args):
        if self.table_trainer is None:
            return super().train_step(*args)
        (data,) = args
        inputs, target, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        query = self.table_trainer(inputs, target, sample_weight)
        return self.compute_metrics(inputs, target, query, sample_weight)

    # --- use -------------------------------------------------------------------------------------------------------------

    def call(self, inputs, vectors=None, newest_only=False, training=None):
        if "end" in inputs and not self.sequence_tower.supports_packing:
            raise ValueError(
                f"{type(self.sequence_tower).__name__} does not support packed rows, which have `end`: make the batches with "
                f"`is_packed=False`."
            )
        vectors, others = self._read(inputs, vectors)
        own = {"newest_only": True} if newest_only else {}
        query = self.sequence_tower(vectors, **others, **own, training=training)
        if len(query.shape) != 3 or query.shape[-1] != self.item_tower.width:
            raise ValueError(
                f"{type(self.sequence_tower).__name__} must return a query after each position, shape (batch, length, "
                f"{self.item_tower.width}). Received: {tuple(query.shape)}."
            )
        return query

    def _read(self, inputs, vectors=None):
        """The item vectors of a history, `(batch, length, width)`, and the other arguments of the sequence tower."""
        vectors = self.item_tower(inputs["history"]) if vectors is None else vectors
        # batches of data with features have them for any tower
        tower, left_out = self.sequence_tower, {"history", "task"}
        left_out |= {
            name for name, is_read in (("events", tower.reads_events), ("context", tower.reads_context)) if not is_read
        }
        return vectors, {name: value for name, value in inputs.items() if name not in left_out}

    def attention_weights(self, inputs, vectors=None) -> list:
        """The attention weights of every block; see `AbstractSequenceTower.attention_weights`."""
        vectors, others = self._read(inputs, vectors)
        return self.sequence_tower.attention_weights(vectors, **others)

    def embed_history(self, inputs, vectors=None, is_aligned=False):
        """The query after the whole history: float32, shape `(batch, width)`; zeros for an empty one.

        Args:
            inputs: dict, see `prepare_inputs`.
            vectors: float tensor, shape `(batch, length, width)`, the vectors of the items. Default: those of the item tower.
            is_aligned: bool, whether the newest item of each history stands in the last column, as `prepare_inputs` puts it: the
                last block of the tower then computes this column alone, where the tower can. Default: False.
        """
        if is_aligned and "newest_only" in inspect.signature(self.sequence_tower.call).parameters:
            query = self(inputs, vectors, newest_only=True, training=False)
            return ops.cast(ops.sum(query, axis=1), "float32")  # of one column, or of none
        return ops.cast(newest(self(inputs, vectors, training=False), inputs["is_real"]), "float32")

    def predict_step(self, data):
        """The result of `predict`: `embed_history` of each row; for packed rows, the query after every position."""
        inputs, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        if "end" in inputs:
            return ops.cast(self(inputs, training=False), "float32")
        return self.embed_history(inputs)

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """Write a SavedModel that embeds histories of item indexes; `tfrec.export` writes one that recommends by item ids.

        Its signature `serving_default` takes `history`, int32 `(batch, length)`, oldest first, 0 = padding, and for a model that
        reads times also `timestamps` and `request_time`, int64. Features are encoded: `NAME`, `(batch, length)`, of each event of
        the history, and for context also `request_NAME`, `(batch,)`. It returns `embedding`, float32 `(batch, width)`.

        Args:
            filepath: the folder to write.
            format: `"tf_saved_model"`, the only one.
        """
        if format != "tf_saved_model" or kwargs.get("input_signature") is not None:
            raise ValueError(
                "`TwoTower.export` writes a tf_saved_model with a signature of its own. For ids in and recommendations out call "
                "`tfrec.export(run, folder)`, for LiteRT `tfrec.to_litert(run, file)`."
            )
        inputs = {"history": keras.InputSpec("int32", (None, None), name="history")}
        if self.sequence_tower.reads_times:
            inputs["timestamps"] = keras.InputSpec("int64", (None, None), name="timestamps")
            inputs["request_time"] = keras.InputSpec("int64", (None,), name="request_time")
        tower = self.sequence_tower
        names = {column: input_name(column) for column in (*tower.event_features, *tower.context_features)}
        for column, spec in {**tower.event_features, **tower.context_features}.items():
            dtype, name = "float32" if spec["kind"] == "number" else "int32", names[column]
            inputs[name] = keras.InputSpec(dtype, (None, None), name=name)
            if column in tower.context_features:
                inputs[f"request_{name}"] = keras.InputSpec(dtype, (None,), name=f"request_{name}")

        def embed(given):
            prepared = prepare_inputs(
                given["history"],
                tower.max_length,
                given.get("timestamps"),
                given.get("request_time"),
                events={column: given[names[column]] for column in tower.event_features},
                event_context={column: given[names[column]] for column in tower.context_features},
                request_context={column: given[f"request_{names[column]}"] for column in tower.context_features},
            )
            return {"embedding": self.embed_history(prepared)}

        archive = keras.export.ExportArchive()
        archive.track(self)
        archive.add_endpoint("serve", embed, input_signature=[inputs])
        archive.write_out(filepath, verbose=False)

    def get_config(self):
        parts = {"item_tower": self.item_tower, "sequence_tower": self.sequence_tower}
        parts |= {"task_head": self.task_head} if self.task_head else {}
        return super().get_config() | {name: keras.saving.serialize_keras_object(part) for name, part in parts.items()}

    @classmethod
    def from_config(cls, config):
        names = [name for name in ("item_tower", "sequence_tower", "task_head") if name in config]
        return cls(**config | {name: keras.saving.deserialize_keras_object(config[name]) for name in names})


def _check_loss(loss) -> None:
    """Raise for a loss that cannot work with a `TwoTower`."""
    ours = f"Pass tfrec's FullSoftmax(), SampledSoftmax(), GBCE() or TfrsRetrieval(counts), or a callable {LOSS_SIGNATURE}."
    if loss is None:
        raise TypeError(f"A `TwoTower` needs a `loss`. {ours}")
    if isinstance(loss, keras.losses.Loss) or not callable(loss):
        raise TypeError(
            f"A `TwoTower` ranks a catalogue; a loss of Keras compares outputs with labels. {ours} Received: {loss!r}."
        )
    try:
        inspect.signature(loss).bind(*LOSS_ARGUMENTS)
    except TypeError:
        raise TypeError(f"The loss must take five arguments. {ours} Received: {loss!r}.") from None
    except ValueError:
        return  # a callable without a signature
