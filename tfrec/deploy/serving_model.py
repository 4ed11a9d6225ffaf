"""The served model: ids in, ids and scores out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfrec.data.encoding import FeatureEncoder, input_spec
from tfrec.data.features import Feature, input_name, twin_input
from tfrec.data.splits import keeps_seen
from tfrec.data.task_columns import output_name
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, OOV_INDEX, PAD_INDEX, Vocabulary
from tfrec.index.answers import Answers
from tfrec.index.building import build_index
from tfrec.index.explanations import Explainer
from tfrec.index.filters import build_filter
from tfrec.index.inputs import RequestEncoder
from tfrec.models.item_tower import ItemTower
from tfrec.models.new_items import as_table
from tfrec.training.run import Run


def _ids(*shape, name: str) -> tf.TensorSpec:
    return tf.TensorSpec(shape, tf.string, name)


HISTORY = _ids(None, None, name="history")
EXCLUDE = _ids(None, None, name="exclude")
ALLOW = _ids(None, None, name="allow")
DENY = _ids(None, None, name="deny")
CANDIDATES = _ids(None, None, name="candidates")
ITEM_IDS = _ids(None, name="item_ids")
K = tf.TensorSpec((None,), tf.int32, "k")


def _traced(function: Callable, inputs: Sequence[tf.TensorSpec]) -> Any:
    """The graph of a function: a `tf.function` is traced again when it is saved."""
    return tf.function(function, inputs, autograph=False).get_concrete_function()


class NewItems(tf.Module):
    """Embeds items that the catalogue lacks by what they are.

    Args:
        tower: `ItemTower` with content.
        features: `Feature`s that it reads.
        row: float32 array `(width,)`; see `new_item_row`.
    Raises:
        ValueError: two features would have the same input.
    """

    def __init__(self, tower: ItemTower, features: Sequence[Feature], row: np.ndarray) -> None:
        super().__init__(name="new_items")
        self.row = tf.constant(row)
        self.encoder = FeatureEncoder(features)
        self._tower = lambda: tower  # behind a function, or its id table would be saved
        self._variables = [v.value for layer in (tower.content, *tower.mlp) for v in layer.variables]
        if twins := twin_input(feature.name for feature in features):
            name = input_name(twins[1])
            raise ValueError(f"Two item features would be the input {name!r} of a served model: rename a column.")
        self.embed = _traced(self._embed, [input_spec(feature) for feature in features])

    def _embed(self, *columns):
        given = zip(self.encoder.features, columns, strict=True)
        encoded = self.encoder({feature.name: column for feature, column in given})
        tower = self._tower()
        return {"embedding": tower.as_candidates(tower.of_content(encoded, self.row))}


class ServingModel(tf.Module):
    """The served model as seven signatures: `Answers` behind a vocabulary.

    A filter adds `recommend_filtered`, item features `embed_new_items`. Where repeats are allowed, `recommend_new` leaves out the
    items of the history. A model with a second head gives `score` a further output, named after the column that it predicts.

    An id that the vocabulary lacks is unknown. A model that reads times or features takes them as further inputs wherever it takes
    `history`; see `tfrec.index.inputs`. `serving_default` and `recommend` differ in their inputs alone.

    Args:
        answers: `Answers`, the model, the index and the rules.
        vocabulary: `Vocabulary`, the catalogue.
        k: int, items that `serving_default` recommends. Default: 10.
        max_k: int, items that any request gets at most: a larger `k` is read as this. Default: no limit.
        new_items: `NewItems`, what embeds new items. Default: nothing does.
        task: `Feature` that the second head of the model predicts. Default: none.
    """

    def __init__(
        self,
        answers: Answers,
        vocabulary: Vocabulary,
        k: int = 10,
        max_k: int | None = None,
        new_items: NewItems | None = None,
        task: Feature | None = None,
    ) -> None:
        super().__init__(name="tfrec")
        self.answers, self.k, self.new_items, self._task = answers, k, new_items, task
        self.max_k = tf.int32.max if max_k is None else max_k
        self._item_ids = tf.Variable(vocabulary.item_ids, dtype=tf.string, trainable=False, name="item_ids")
        keys = tf.constant(["", *vocabulary.item_ids])
        values = tf.constant([PAD_INDEX, *range(FIRST_ITEM_INDEX, FIRST_ITEM_INDEX + len(vocabulary))], tf.int32)
        self._item_index = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), OOV_INDEX)

        self._encode = RequestEncoder(answers.inputs)
        query = [HISTORY, *(put.spec() for put in answers.inputs)]
        self.serving_default = _traced(self._serving_default, query)
        self.recommend = _traced(self._recommend, [*query, EXCLUDE, K])
        if keeps_seen(answers.repeats):
            self.recommend_new = _traced(self._recommend_new, [*query, EXCLUDE, K])
        if answers.filter:
            filtered = [*query, EXCLUDE, K, ALLOW, DENY]
            self.recommend_filtered = _traced(self._recommend_filtered, filtered)
        self.similar_items = _traced(self._similar_items, [ITEM_IDS, K])
        self.score = _traced(self._score, [*query, CANDIDATES])
        self.explain = _traced(self._explain, [*query, ITEM_IDS])
        self.embed_history = _traced(self._embed_history, query)
        self.embed_items = _traced(self._embed_items, [ITEM_IDS])
        self.release = tf.function(self._release, [])

    @property
    def signatures(self) -> dict[str, Any]:
        """The functions to save, by signature name."""
        new = ("recommend_new",) if keeps_seen(self.answers.repeats) else ()
        filtered = ("recommend_filtered",) if self.answers.filter else ()
        plain = ("serving_default", "recommend")
        names = (*plain, *new, *filtered, "similar_items", "score", "explain", "embed_history", "embed_items")
        found = {name: getattr(self, name) for name in names}
        return found | ({} if self.new_items is None else {"embed_new_items": self.new_items.embed})

    def _release(self) -> None:
        """Free the resources that no garbage collection frees, in the process that built the model and in one that loaded it."""
        of_features = [] if self.new_items is None else self.new_items.encoder.handles()
        of_features += self._encode.encoder.handles()
        for handle in [self._item_index.resource_handle, *self.answers.index.handles(), *of_features]:
            tf.raw_ops.DestroyResourceOp(resource=handle)

    def _serving_default(self, history, *others):
        number = tf.shape(history)[0]
        exclude, k = tf.zeros((number, 0), tf.int32), tf.fill((number,), self.k)
        return self._named(*self.answers.rank(self._indexes(history), self._encode(others), exclude, k, self.k))

    def _recommend(self, history, *others):
        return self._recommend_within(history, others)

    def _recommend_new(self, history, *others):
        return self._recommend_within(history, others, repeats="exclude")

    def _recommend_within(self, history, others, **how):
        *further, exclude, k = others
        k = tf.minimum(k, self.max_k)  # not refused: a batch holds requests of others
        width = tf.reduce_max(tf.concat([k, [0]], 0))
        given = (self._indexes(history), self._encode(further), self._indexes(exclude))
        return self._named(*self.answers.rank(*given, k, width, **how))

    def _recommend_filtered(self, history, *others):
        *plain, allow, deny = others
        return self._recommend_within(history, plain, allow=allow, deny=deny)

    def _similar_items(self, item_ids, k):
        return self._named(*self.answers.similar(self._indexes(item_ids), tf.minimum(k, self.max_k)))

    def _score(self, history, *others):
        *further, candidates = others
        asked = (self._indexes(history), self._encode(further), self._indexes(candidates))
        scores, predicted = self.answers.score(*asked)
        if self._task is None:
            return {"scores": scores}
        if self._task.kind == "category":
            predicted = tf.gather(tf.constant(["", "", *self._task.values]), predicted)
        return {"scores": scores, output_name(self._task.name): predicted}

    def _explain(self, history, *others):
        *further, item_ids = others
        asked = tf.expand_dims(self._indexes(item_ids), 1)  # one candidate
        contributions, _ = Explainer(self.answers).contributions(self._indexes(history), self._encode(further), asked)
        return {"contributions": tf.squeeze(contributions, 1)}

    def _embed_history(self, history, *others):
        return {"embedding": self.answers.query(self._indexes(history), self._encode(others))[0]}

    def _embed_items(self, item_ids):
        return {"embedding": self.answers.embed_items(self._indexes(item_ids))}

    def _indexes(self, ids):
        """Item indexes of ids."""
        return self._item_index.lookup(ids)

    def _named(self, items, scores):
        """The outputs of item indexes and scores; `""` stands for `PAD_INDEX`."""
        ids = tf.gather(self._item_ids.value(), tf.maximum(items - FIRST_ITEM_INDEX, 0))
        return {"item_ids": tf.where(items >= FIRST_ITEM_INDEX, ids, ""), "scores": scores}


def build_serving_model(
    run: Run,
    index: str = "scann",
    k: int = 10,
    *,
    storage: str = "float32",
    recall: float = 0.99,
    queries: np.ndarray | None = None,
    filters: Sequence[str] = (),
    max_k: int | None = None,
    repeats: str | None = None,
    new_items: NewItems | None = None,
) -> ServingModel:
    """Build the served model of a run, in memory.

    An approximate index is tuned to rank a typical history's length of items more than `k`, since a request leaves those out.

    Args:
        run: the run.
        index, storage, recall, queries: see `build_index`.
        k: int, items that `serving_default` recommends. Default: 10.
        filters: columns of the run's items that `recommend_filtered` filters by. Default: none.
        max_k, new_items: see `ServingModel`.
        repeats: str, `"exclude"` or `"allow"`; see `Answers`. Default: `Run.repeats`.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1. Received: {k}.")
    if max_k is not None and max_k < k:
        raise ValueError(f"`max_k` must be at least `k`. Received: k={k}, max_k={max_k}.")
    model = as_table(run.model)
    catalogue = tf.function(model.item_tower.catalogue, jit_compile=True)  # without a table of squares beside it
    needed = k + run.length_quantiles["50%"]
    built = build_index(index, catalogue(), storage=storage, queries=queries, recall=recall, k=needed)
    item_filter = build_filter(filters, run.items)
    choice = run.repeats if repeats is None else repeats
    answers = Answers(model, run.items["num_events"], built, item_filter, repeats=choice, features=run.features)
    return ServingModel(answers, run.vocabulary, k, max_k, new_items, run.task)
