"""The item tower embeds the catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.layers.dropout import Dropout
from tfrec.layers.normalization import inverse_norm
from tfrec.models.towers import AbstractItemTower


@keras.saving.register_keras_serializable("tfrec")
class ItemTower(AbstractItemTower):
    """Embeds items by an id table and by what they are; the histories and the ranked catalogue share the vectors.

    The vector of an item is its row of the table plus the vector of its content. Training leaves the row out of a share of the
    items, so that content alone stands for a new item.
    Source: the shared item matrix of Kang & McAuley 2018, section III-C; the optional MLP is the usual two-tower candidate network
    (Yi et al. 2019); rows that are left out are DropoutNet (Volkovs et al. 2017). Differs from the sources: the MLP is residual;
    DropoutNet leaves out inputs of a network that starts from trained ids, and here both are trained at once.

    >>> tower = ItemTower(num_items=5, width=4)
    >>> tower.build()
    >>> tower.catalogue().shape
    TensorShape([5, 4])

    Args:
        num_items: int > 0, size of the catalogue, without padding and unknown.
        width: int > 0, width of the id table.
        mlp_dims: ints, hidden widths of an MLP (GELU) that is added to the vectors. Default: no MLP.
        normalize: bool, whether candidates are L2-normalised. Default: False.
        init_stddev: float, standard deviation of the table's first values; 0 starts from zeros, at a third of the memory.
            Default: 0.02.
        content: Keras layer, from the features of items to their content vectors, such as `FeatureEmbedding`: called with a dict
            of tensors, shape `(..., *)` for the features of `...` items, it returns a float tensor `(..., width)`. Default: none.
        features: dict of arrays by name, int or float, shape `(num_items, *)`: the features of each item, which `content` reads.
            They are weights that are saved, but not trained.
        id_dropout_rate: float in [0, 1), share of the items whose row training leaves out. Default: 0.
    Call arguments:
        item_index: int tensor, any shape: `PAD_INDEX`, `OOV_INDEX` or `FIRST_ITEM_INDEX + i`.
    Returns:
        Float tensor, shape `(*item_index.shape, width)`.
    Raises:
        ValueError: `features` have another number of rows than items, or are given without `content`, or the other way round.
    """

    def __init__(
        self,
        num_items: int,
        width: int,
        mlp_dims: Sequence[int] = (),
        normalize: bool = False,
        init_stddev: float = 0.02,
        content: keras.layers.Layer | None = None,
        features: Mapping[str, Any] | None = None,
        id_dropout_rate: float = 0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_items < 1:
            raise ValueError(f"`num_items` must be at least 1. Received: num_items={num_items}.")
        if (content is None) != (not features):
            raise ValueError("`content` reads `features`: give both, or none of them.")
        self.num_items = num_items
        self.width = width
        self.mlp_dims = list(mlp_dims)
        self.normalize = normalize
        self.init_stddev = init_stddev
        self.content = content
        self.id_dropout_rate = id_dropout_rate
        own = {"dtype": self.dtype_policy}
        self.mlp = [keras.layers.Dense(d, activation="gelu", **own) for d in self.mlp_dims]
        if self.mlp:
            self.mlp.append(keras.layers.Dense(width, **own))
        self.id_dropout = Dropout(id_dropout_rate, whole_vectors=True, **own)
        self.features = {name: self._feature(name, values) for name, values in (features or {}).items()}

    def _feature(self, name: str, values):
        """The weight that holds a feature, from its values or from the shape and the dtype of `get_config`."""
        if isinstance(values, Mapping):
            shape, dtype, values = values["shape"], values["dtype"], None
        else:
            values = np.asarray(values)
            if len(values) != self.num_items:
                raise ValueError(f"Feature `{name}` has {len(values)} rows, and there are {self.num_items} items.")
            shape, dtype = values.shape[1:], "int32" if values.dtype.kind in "iub" else "float32"
        rows = self.num_items + FIRST_ITEM_INDEX
        place = f"feature_{len(self._non_trainable_variables)}"  # a column's name may be no name of a variable
        weight = self.add_weight((rows, *shape), "zeros", dtype=dtype, trainable=False, name=place)
        if values is not None:
            # padding and unknown items have the features of none
            weight.assign(np.concatenate([np.zeros((FIRST_ITEM_INDEX, *shape), dtype), values.astype(dtype)]))
        return weight

    def build(self, input_shape=None):
        self.table = self.add_weight(
            shape=(self.num_items + FIRST_ITEM_INDEX, self.width),
            initializer=keras.initializers.RandomNormal(stddev=self.init_stddev) if self.init_stddev else "zeros",
            name="table",
        )
        if self.content is not None and not self.content.built:
            self.content.build({name: weight.shape for name, weight in self.features.items()})
        dim = self.width
        for layer in self.mlp:
            layer.build((None, dim))
            dim = layer.units

    def features_of(self, item_index):
        """The features of items: a dict of tensors, by name."""
        return {name: ops.take(weight, item_index, axis=0) for name, weight in self.features.items()}

    def refine(self, rows, features=None, training=None):
        """Vectors from rows of the table and features, in the form that histories read.

        Args:
            rows: float tensor, shape `(..., width)`.
            features: dict of tensors, what `features_of` gives for these rows, for a tower with content.
            training: bool, whether some rows are left out. Default: False.
        """
        x = rows
        if self.content is not None:
            x = self.id_dropout(x, training=training) if training else ops.convert_to_tensor(x)
            x = ops.cast(self.content(features), x.dtype) + x
        h = x
        for layer in self.mlp:
            h = layer(h)
        return x + h if self.mlp else x

    def of_content(self, features, row=0.0):
        """The vectors of items that the table lacks, in the form that histories read.

        Args:
            features: dict of tensors by name, shape `(..., *)`; see `features_of`.
            row: float tensor, shape `(width,)`, in place of their rows. Default: 0.
        """
        return self.refine(row, features)

    def parts(self, item_index):
        """The candidates as sums of two: of the rows of the table, and of the content.

        Args:
            item_index: int tensor, any shape.
        Returns:
            `(of_ids, of_content)`: float32 tensors, shape `(*item_index.shape, width)`, whose sum is `candidates(item_index)`; None
            for a tower without content, or with an MLP, whose part belongs to both.
        """
        if self.content is None or self.mlp:
            return None
        rows = ops.take(ops.cast(self.table, self.compute_dtype), item_index, axis=0)
        parts = [ops.cast(part, "float32") for part in (rows, self.content(self.features_of(item_index)))]
        scale = inverse_norm(parts[0] + parts[1]) if self.normalize else 1.0
        return parts[0] * scale, parts[1] * scale

    def call(self, item_index, training=None):
        rows = ops.take(ops.cast(self.table, self.compute_dtype), item_index, axis=0)
        return self.refine(rows, self.features_of(item_index), training)

    def candidates(self, item_index, training=None):
        return self.as_candidates(self(item_index, training=training))

    def catalogue(self, training=None):
        features = {name: ops.convert_to_tensor(weight)[FIRST_ITEM_INDEX:] for name, weight in self.features.items()}
        return self.as_candidates(self.refine(ops.convert_to_tensor(self.table)[FIRST_ITEM_INDEX:], features, training))

    def in_training(self):
        return _InTraining(self) if self.content is not None and self.id_dropout_rate else self

    def get_config(self):
        own = {"num_items": self.num_items, "width": self.width, "mlp_dims": self.mlp_dims}
        own |= {"normalize": self.normalize, "init_stddev": self.init_stddev}
        if self.content is not None:
            shapes = {n: {"shape": list(w.shape[1:]), "dtype": w.dtype} for n, w in self.features.items()}
            own |= {"features": shapes, "content": keras.saving.serialize_keras_object(self.content)}
            own |= {"id_dropout_rate": self.id_dropout_rate}
        return super().get_config() | own

    @classmethod
    def from_config(cls, config):
        content = config.get("content")
        return cls(**config | ({"content": keras.saving.deserialize_keras_object(content)} if content else {}))


class _InTraining:
    """An item tower whose candidates have some rows left out."""

    def __init__(self, tower: ItemTower) -> None:
        self._tower = tower

    def __getattr__(self, name):
        return getattr(self._tower, name)

    def candidates(self, item_index):
        return self._tower.candidates(item_index, training=True)

    def catalogue(self):
        return self._tower.catalogue(training=True)
