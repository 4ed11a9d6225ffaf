"""The run: a trained model with everything that it takes to use it, in one folder.

run.json           format, tfrec's version, where the data lay and its fingerprint, quantiles of the histories' lengths
config.json        the settings, without open fields
model.json         the two towers as Keras serialises them
model.weights.h5   the weights of the epoch with the best validation NDCG@10
vocabulary.json    item ids in index order
items.parquet      columns of item properties
sample.npz         the newest events of up to 1,000 users: what an index is tuned and an export is checked with
history.csv        a row for each epoch
metrics.json       the best epoch and its validation metrics
checkpoint.npz     the state after the last finished epoch, for `--resume`
logs/              for TensorBoard

features.json      what was learned of the columns that the model reads, and the tables of text features.npz

Format 3. Format 2 had no features: a run of it embeds items by their ids alone. Format 1 had no run.json, model.json and
sample.npz, and the path of the data in config.json.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from tfrec.data.cold_items import ColdItems
from tfrec.data.features import Feature, load_features, save_features
from tfrec.data.prepared import ITEMS, PreparedData
from tfrec.data.splits import LeaveLastOut, Split
from tfrec.data.vocabulary import FIRST_ITEM_INDEX, Vocabulary
from tfrec.index.answers import Answers
from tfrec.index.explanations import Explainer
from tfrec.index.filters import build_filter
from tfrec.index.inputs import RequestEncoder, request_inputs
from tfrec.models.item_tower import ItemTower
from tfrec.models.new_items import as_table
from tfrec.models.two_tower import TwoTower
from tfrec.training.compiling import build_model
from tfrec.training.config import Config
from tfrec.training.requests import check_ids, read_history, read_request
from tfrec.training.results import Attention, Explanation, Recommendations, Scores, cosines
from tfrec.training.sample import load_sample, save_sample
from tfrec.training.settings import ABOUT, CONFIG, FORMAT, RunSettings, read_json, read_settings, split_of
from tfrec.version import __version__

MODEL, WEIGHTS, SAMPLE = "model.json", "model.weights.h5", "sample.npz"
HISTORY, METRICS, CHECKPOINT = "history.csv", "metrics.json", "checkpoint.npz"
SAMPLE_USERS = 1000


@dataclass
class Run:
    """A trained model with everything that it takes to use it.

    >>> run = Run.open("run")  # doctest: +SKIP
    >>> run.recommend(["50", "181"], k=2).item_ids  # doctest: +SKIP
    array(['172', '174'], dtype='<U4')

    Attributes:
        folder: Path, the run folder.
        config: `Config`, the settings without open fields; None for a model that was fitted by hand.
        model: `TwoTower` with the best weights.
        vocabulary: `Vocabulary`, the catalogue.
        items: PyArrow table, the properties of the items in index order: `item_id`, `num_events`, perhaps `title` and others.
        features: dict, lists of `Feature` by whose they are, as of `PreparedData`.
        sample: `PreparedData`, the newest events of up to 1,000 users, for use with `LeaveLastOut`.
        length_quantiles: dict, `min`, `25%`, `50%`, `75%`, `95%` and `max` of the number of events of a user.
        metrics: dict, content of `metrics.json`.
        history: dict, a list with a value for each epoch by name; NaN where an epoch was not validated.
        settings: `RunSettings`, among them where the data lay.
    """

    folder: Path
    config: Config | None
    model: TwoTower
    vocabulary: Vocabulary
    items: pa.Table
    features: dict[str, list[Feature]]
    sample: PreparedData
    length_quantiles: dict[str, int]
    metrics: dict[str, Any]
    history: dict[str, list[float]]
    settings: RunSettings

    @classmethod
    def open(cls, folder: str | os.PathLike) -> Run:
        """Rebuild a run from its folder; a model of own classes needs the module imported that defines them.

        Raises:
            ValueError: the folder is no run, or has no weights yet.
            NewerFormatError: a newer tfrec wrote it.
        """
        settings = read_settings(folder)
        folder, config = settings.folder, settings.config
        if not (folder / WEIGHTS).is_file():
            raise ValueError(
                f"`{folder}` has no weights yet: no epoch was finished. Go on with `tfrec train --resume`."
            )
        vocabulary, features = settings.vocabulary, load_features(folder)
        if settings.format_version == 1:
            assert config is not None
            # Skip the random initialisation, which would hold a large item table three times: the weights come next.
            model = build_model(dataclasses.replace(config, init_stddev=0.0), len(vocabulary))
            sample, quantiles = _sample_of_format_1(settings, model.sequence_tower.max_length)
        else:
            model = _rebuild(read_json(folder / MODEL))
            quantiles = settings.length_quantiles
            sample = load_sample(folder / SAMPLE, vocabulary, features)
        model.load_weights(folder / WEIGHTS)
        items = pyarrow.parquet.read_table(folder / ITEMS)
        metrics, history = read_json(folder / METRICS), _read_history(folder)
        return cls(folder, config, model, vocabulary, items, features, sample, quantiles, metrics, history, settings)

    @classmethod
    def from_model(cls, model: TwoTower, data: PreparedData, folder: str | os.PathLike) -> Run:
        """Write the run folder of a model that was fitted by hand.

        Args:
            model: `TwoTower`, fitted.
            data: `PreparedData` that it was fitted on.
            folder: the run folder to write; it must not exist.
        Raises:
            ValueError: the model cannot be rebuilt from its config, or has another number of items than the data.
            FileExistsError: `folder` exists.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"`{folder}` exists. Choose another folder.")
        if model.item_tower.num_items != data.num_items:
            raise ValueError(f"The model has {model.item_tower.num_items} items and the data {data.num_items}.")
        write_run(folder, model, data, None)
        model.save_weights(folder / WEIGHTS)
        return cls.open(folder)

    @property
    def repeats(self) -> str:
        """Whether items of a history may come back, as the run was trained: `"exclude"` or `"allow"`.

        A run of an earlier version and a model that was fitted by hand have `"exclude"`.
        """
        return "exclude" if self.config is None else self.config.repeats

    @property
    def targets(self) -> tuple[str, ...]:
        """Which events are to be found, as the run was trained; see `LeaveLastOut`."""
        return () if self.config is None else self.config.targets

    @property
    def task(self) -> Feature | None:
        """What was learned of the column that the second head predicts; None for a model without one."""
        head = self.model.task_head
        known = self.features.get("events", [])
        return None if head is None else next((feature for feature in known if feature.name == head.column), None)

    def split(self, data: PreparedData) -> Split:
        """The split of the run's data."""
        return LeaveLastOut(data) if self.config is None else split_of(data, self.config)

    def sample_split(self) -> LeaveLastOut:
        """The sample as a split: the newest histories of its users."""
        is_by_time = self.config is not None and self.config.split == "time"  # its sample ends with any event
        return LeaveLastOut(self.sample, targets=() if is_by_time else self.targets)

    def recommend(
        self,
        history: Sequence[str] | Sequence[Sequence[str]],
        k: int = 10,
        *,
        exclude: Sequence[str] = (),
        repeats: str | None = None,
        allow: Mapping[str, Sequence[str]] | None = None,
        deny: Mapping[str, Sequence[str]] | None = None,
        timestamps: Sequence | None = None,
        request_time: Any = 0,
        events: Mapping[str, Sequence] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Recommendations:
        """Recommend the `k` best items after one history or after many, by the rules of the served model.

        Args:
            history: item ids, oldest first; or a list of such histories.
            k: int, number of items. Default: 10.
            exclude: item ids that are not recommended. Default: none.
            repeats: str, `"exclude"` leaves out the items of each history too; `"allow"` does not. Default: `Run.repeats`.
            allow: dict, values by the name of an item property: only items that have one of them. Default: all items.
            deny: dict, values by the name of an item property: no item that has one of them. Default: none.
            timestamps: for a model that reads times, the time of each event, in the shape of `history`: seconds, or
                milliseconds and finer; see `to_seconds`. Default: unknown.
            request_time: for such a model, the time of the request; or a list with one for each history. Default: unknown.
            events: for a model that reads columns of the log, the values of each event by the name of the column, in the shape of
                `history`, such as `{"event_type": ["view", "cart"]}`. Default: unknown.
            context: for a model that reads the context of a request or properties of users, values by name, such as
                `{"device": "phone"}`; or lists with one for each history. Default: unknown.
        Returns:
            `Recommendations`: arrays of shape `(k,)` for one history, `(histories, k)` for many.
        Raises:
            TypeError: an item id is not text.
            ValueError: the items have no such property, or `repeats` is another value.
        """
        answers = self._answers(tuple(sorted({*(allow or {}), *(deny or {})})))
        is_one, known, given = read_request(
            self.vocabulary, self._encoder, history, timestamps, request_time, events, context
        )
        excluded = self.vocabulary.encode(check_ids(exclude))
        items, scores = answers.recommend(known, k, exclude=excluded, repeats=repeats, allow=allow, deny=deny, **given)
        ids = np.array([self.vocabulary.decode(row) for row in items]).reshape(items.shape)
        return Recommendations(ids[0], scores[0]) if is_one else Recommendations(ids, scores)

    def score(
        self,
        history: Sequence[str] | Sequence[Sequence[str]],
        candidates: Sequence[str],
        *,
        timestamps: Sequence | None = None,
        request_time: Any = 0,
        events: Mapping[str, Sequence] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Scores:
        """Score candidates after one history or after many, by the rules of the served model; with what a second head predicts.

        Args:
            candidates: item ids, the same for each history.
            history, timestamps, request_time, events, context: see `recommend`.
        Returns:
            `Scores`: arrays of shape `(candidates,)` for one history, `(histories, candidates)` for many.
        Raises:
            TypeError: an item id is not text.
        """
        answers, task = self._answers(()), self.task
        is_one, known, given = read_request(
            self.vocabulary, self._encoder, history, timestamps, request_time, events, context
        )
        scores, predicted = answers.score_candidates(known, self.vocabulary.encode(check_ids(candidates)), **given)
        if task is not None and task.kind == "category":
            predicted = np.array(["", "", *task.values])[predicted]
        return Scores(scores[0], None if predicted is None else predicted[0]) if is_one else Scores(scores, predicted)

    def explain(
        self,
        history: Sequence[str],
        items: Sequence[str],
        *,
        timestamps: Sequence | None = None,
        request_time: Any = 0,
        events: Mapping[str, Sequence] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Explanation:
        """Say why items have their scores after one history: how far each item of the history moved them, by leaving it out.

        Beside it stand the similarity of each item of the history and, for a model with item features, the parts of id and content.

        >>> run.explain(["50", "181"], ["172"]).contributions  # doctest: +SKIP
        array([[0.41, 0.17]], dtype=float32)

        Args:
            items: item ids.
            history, timestamps, request_time, events, context: see `recommend`; of one history.
        Raises:
            TypeError: an item id is not text.
            ValueError: there are several histories.
        """
        answers, asked = self._answers(()), self.vocabulary.encode(check_ids(items))
        known, given = read_history(self.vocabulary, self._encoder, history, timestamps, request_time, events, context)
        (scores,), _ = answers.score_candidates([known], asked, **given)
        contributions, query = self._explainer.explain(known, asked, **given)
        similarities = cosines(*(np.asarray(answers.embed_items(index)) for index in (asked, known)))
        of_parts: list[np.ndarray | None] = [None, None]
        tower = self.model.item_tower
        if isinstance(tower, ItemTower) and (parts := tower.parts(asked)) is not None:
            is_dot = (known >= FIRST_ITEM_INDEX).any() & (
                asked >= FIRST_ITEM_INDEX
            )  # else the score is none of the vectors
            of_parts = [np.where(is_dot, np.asarray(part) @ query, np.float32(np.nan)) for part in parts]
        return Explanation(np.array(items, str), scores, np.array(history, str), contributions, similarities, *of_parts)

    def attention(
        self,
        history: Sequence[str],
        *,
        timestamps: Sequence | None = None,
        request_time: Any = 0,
        events: Mapping[str, Sequence] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> Attention:
        """The attention weights of every block and head for one history.

        >>> run.attention(["50", "181"]).plot().savefig("attention.png")  # doctest: +SKIP

        Args:
            history, timestamps, request_time, events, context: see `recommend`; of one history.
        Raises:
            ValueError: the sequence tower has no attention heads, or there are several histories.
        """
        known, given = read_history(self.vocabulary, self._encoder, history, timestamps, request_time, events, context)
        weights = self._explainer.attention_weights(known, **given)
        places = np.flatnonzero(known >= FIRST_ITEM_INDEX)[-self.model.sequence_tower.max_length :]
        return Attention(np.array(history, str)[places], places, weights)

    @cached_property
    def _encoder(self) -> RequestEncoder:
        return RequestEncoder(request_inputs(self.model.sequence_tower, self.features))

    @cached_property
    def _explainer(self) -> Explainer:
        return Explainer(self._answers(()))

    @cached_property
    def _answers_by_filter(self) -> dict[tuple[str, ...], Answers]:
        return {}

    def _answers(self, filters: tuple[str, ...]) -> Answers:
        """The rules of an answer with a filter by some columns, made once."""
        made = self._answers_by_filter
        if filters not in made:
            own: dict[str, Any] = {"repeats": self.repeats, "features": self.features}
            own["item_filter"] = build_filter(filters, self.items)
            made[filters] = Answers(as_table(self.model), self.items["num_events"], **own)
        return made[filters]

    def cold_items(self, data: PreparedData | str | os.PathLike | None = None) -> ColdItems:
        """The items that the run was trained without, from the data with them; see `data`."""
        assert self.config is not None
        cold = ColdItems(self.settings.find_data(data), self.config.cold_items, self.config.seed, self.targets)
        self.settings.check_data(cold.known)
        return cold

    def data(self, data: PreparedData | str | os.PathLike | None = None) -> PreparedData:
        """Open the prepared data that the run was trained on: without its `cold_items`.

        Args:
            data: the data or where it lies now. Default: where it lay at training.
        Raises:
            ValueError: nothing is known of where it lies, or nothing lies there.
            DataMismatchError: it is not the data that the run was trained on.
        """
        found = self.settings.open_data(data)
        return dataclasses.replace(found, vocabulary=self.vocabulary)  # a large vocabulary is held once


def write_run(
    folder: Path, model: TwoTower, data: PreparedData, config: Config | None, own: Sequence[str] = ()
) -> None:
    """Write everything of a run folder that is known before training."""
    towers = {
        "module": type(model).__module__,
        "class_name": type(model).__name__,
        "registered_name": keras.saving.get_registered_name(type(model)),
        "config": model.get_config(),
    }
    text = json.dumps(towers, indent=1)
    _rebuild(json.loads(text))  # a class that cannot be rebuilt fails before the training and not after it
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MODEL).write_text(text, encoding="utf-8")
    (folder / CONFIG).write_text(json.dumps({} if config is None else config.to_dict(), indent=2), encoding="utf-8")
    data.vocabulary.save(folder)
    pyarrow.parquet.write_table(data.items, folder / ITEMS)
    if any(data.features.values()):
        save_features(folder, data.features)
    split = LeaveLastOut(data) if config is None else split_of(data, dataclasses.replace(config, final_epochs=None))
    sample = split.sample(SAMPLE_USERS, model.sequence_tower.max_length)
    save_sample(folder / SAMPLE, sample)
    about = {
        "format_version": FORMAT,
        "tfrec_version": __version__,
        "data": None if data.folder is None else str(data.folder.resolve()),
        "fingerprint": data.fingerprint,
        "length_quantiles": data.length_quantiles,
        "own": list(own),
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=2), encoding="utf-8")


def _read_history(folder: Path) -> dict[str, list[float]]:
    """The columns of `history.csv`; NaN where a row has no value."""
    if not (folder / HISTORY).is_file():
        return {}
    with (folder / HISTORY).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}


def _rebuild(spec: dict[str, Any]) -> TwoTower:
    """The model of a `model.json`, without its weights."""
    items = spec["config"]["item_tower"]["config"]
    if "init_stddev" in items:
        # Skip the random initialisation, which would hold a large item table three times: the weights come next.
        items |= {"init_stddev": 0.0}
    try:
        model = keras.saving.deserialize_keras_object(spec)
        model.build()
    except (TypeError, ValueError, ImportError, AttributeError) as error:
        raise ValueError(
            f"The model cannot be rebuilt from its config ({str(error).splitlines()[0]}). Import the module that defines its "
            f"classes first; each class needs `get_config` and `@keras.saving.register_keras_serializable`."
        ) from error
    return model


def _sample_of_format_1(settings: RunSettings, max_length: int) -> tuple[PreparedData, dict[str, int]]:
    """The sample and the quantiles from the data, where it still lies there; else an empty sample."""
    try:
        data = settings.open_data()
    except ValueError:
        empty = np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(1, np.int64)
        data = PreparedData(settings.vocabulary, *empty)
    return LeaveLastOut(data).sample(SAMPLE_USERS, max_length), data.length_quantiles
