"""The item tower embeds the catalogue."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.models.towers import AbstractItemTower


@keras.saving.register_keras_serializable("tfrec")
class ItemTower(AbstractItemTower):
    """Embeds items by an id table, which the histories and the ranked catalogue share.

    Source: the shared item matrix of Kang & McAuley 2018, section III-C; the optional MLP is the usual two-tower
    candidate network (Yi et al. 2019). Differs from the sources: the MLP is residual.

    >>> tower = ItemTower(num_items=5, width=4)
    >>> tower.build()
    >>> tower.catalogue().shape
    TensorShape([5, 4])

    Args:
        num_items: int > 0, size of the catalogue, without padding and unknown.
        width: int > 0, width of the id table.
        mlp_dims: ints, hidden widths of an MLP (GELU) that is added to the rows of the table. Default: no MLP.
        normalize: bool, whether candidates are L2-normalised. Default: False.
        init_stddev: float, standard deviation of the table's first values; 0 starts from zeros, at a third of the memory.
            Default: 0.02.
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

    def refine(self, x):
        """Rows of the table in the form that histories read: through the MLP, where there is one."""
        h = x
        for layer in self.mlp:
            h = layer(h)
        return x + h if self.mlp else x

    def call(self, item_index):
        return self.refine(ops.take(ops.cast(self.table, self.compute_dtype), item_index, axis=0))

    def catalogue(self):
        return self.as_candidates(self.refine(ops.convert_to_tensor(self.table)[FIRST_ITEM_INDEX:]))

    def get_config(self):
        own = {"num_items": self.num_items, "width": self.width, "mlp_dims": self.mlp_dims}
        return super().get_config() | own | {"normalize": self.normalize, "init_stddev": self.init_stddev}
