"""The item tower embeds the catalogue."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import keras
from keras import ops

from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.layers.normalization import l2_normalize


@keras.saving.register_keras_serializable("tfrec")
class ItemTower(keras.layers.Layer):
    """Embeds items: an id table, shared by the histories that are read and the catalogue that is ranked.

    Source: the shared item matrix of Kang & McAuley 2018, section III-C; the optional MLP is the usual two-tower
    candidate network (Yi et al. 2019).

    Args:
        num_items: int > 0: size of the catalogue, without padding and unknown.
        width: int > 0: width of the id table.
        mlp_dims: ints: hidden widths of an MLP (GELU) on top of the table, added to what it reads; none by default.
        normalize: whether `candidates` and `catalogue` have length 1.
        init_stddev: float: of the normal distribution that the table starts from; 0: zeros, at a third of the memory.
    Call arguments:
        item_index: int tensor, any shape: `PAD_INDEX`, `OOV_INDEX` or `FIRST_ITEM_INDEX + i`.
    Returns:
        Float tensor, shape `(*item_index.shape, width)`.
    """

    def __init__(
        self,
        num_items: int,
        width: int,
        mlp_dims: Sequence[int] = (),
        normalize: bool = False,
        init_stddev: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if num_items < 1:
            raise ValueError(f"`num_items` must be at least 1. Received: num_items={num_items}.")
        self.num_items = num_items
        self.width = width
        self.mlp_dims = list(mlp_dims)
        self.normalize = normalize
        self.init_stddev = init_stddev
        self._reading: tuple | None = None
        own = {"dtype": self.dtype_policy}
        self.mlp = [keras.layers.Dense(d, activation="gelu", **own) for d in self.mlp_dims]
        if self.mlp:
            self.mlp.append(keras.layers.Dense(width, **own))

    def build(self, input_shape=None):
        self.table = self.add_weight(
            shape=(self.num_items + FIRST_ITEM_INDEX, self.width),
            initializer=keras.initializers.RandomNormal(stddev=self.init_stddev) if self.init_stddev else "zeros",
            name="table",
        )
        dim = self.width
        for layer in self.mlp:
            layer.build((None, dim))
            dim = layer.units

    def _refine(self, x):
        h = x
        for layer in self.mlp:
            h = layer(h)
        return x + h if self.mlp else x

    @contextlib.contextmanager
    def reading(self, rows, item_index):
        """While it lasts, item indexes mean places in `rows`, which are the table's rows at `item_index`.

        So a training step can work on the few rows that its batch holds (`lazy_table`).
        """
        self._reading = rows, item_index
        try:
            yield
        finally:
            self._reading = None

    def original(self, item_index):
        """The item indexes in the catalogue, also while `reading`."""
        return item_index if self._reading is None else ops.take(self._reading[1], item_index, axis=0)

    def call(self, item_index):
        table = self.table if self._reading is None else self._reading[0]
        return self._refine(ops.take(ops.cast(table, self.compute_dtype), item_index, axis=0))

    def _as_candidates(self, x):
        x = ops.cast(x, "float32")
        return l2_normalize(x) if self.normalize else x

    def candidates(self, item_index):
        """What queries are compared with: float32 tensor, shape `(*item_index.shape, width)`."""
        return self._as_candidates(self(item_index))

    def catalogue(self):
        """Every candidate: float32 tensor, shape `(num_items, width)`; row `i` has item index `i + FIRST_ITEM_INDEX`."""
        return self._as_candidates(self._refine(ops.convert_to_tensor(self.table)[FIRST_ITEM_INDEX:]))

    def compute_output_shape(self, input_shape):
        return (*input_shape, self.width)

    def get_config(self):
        own = {"num_items": self.num_items, "width": self.width, "mlp_dims": self.mlp_dims}
        return super().get_config() | own | {"normalize": self.normalize, "init_stddev": self.init_stddev}
