"""Recommendations for all users of prepared data, in one file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from tfrec.data.items import read_items, read_users
from tfrec.data.prepared import ITEMS, PreparedData
from tfrec.data.splits import keeps_seen
from tfrec.data.vocabulary import FIRST_ITEM_INDEX
from tfrec.deploy.check import load_export
from tfrec.deploy.parts import ENDINGS, Parts
from tfrec.deploy.saved_model import FORMAT, MANIFEST, latest_version
from tfrec.deploy.user_requests import UserRequests, user_rows
from tfrec.exceptions import DataMismatchError
from tfrec.formats import check_format
from tfrec.index.answers import SCORES_BYTES, Answers
from tfrec.index.filters import build_filter, wanted_of
from tfrec.index.inputs import RequestEncoder, describe_inputs
from tfrec.models.new_items import as_table
from tfrec.progress import track
from tfrec.training.requests import check_ids
from tfrec.training.run import CONFIG, Run

PART_USERS = 2048
"""Users of a part."""
SCHEMA = pa.schema([("user_id", pa.string()), ("rank", pa.int32()), ("item_id", pa.string()), ("score", pa.float32())])


@dataclass(frozen=True)
class BulkReport:
    """The result of `recommend_all`.

    Attributes:
        path: Path of the file.
        num_users: int, users that it answers.
        num_rows: int, its rows.
        num_unknown_users: int, ids of `users` that the data lacks.
        num_unknown_items: int, items of the data that the model lacks: histories are read without them.
        num_resumed: int, users that an earlier call had answered.
    """

    path: Path
    num_users: int
    num_rows: int
    num_unknown_users: int
    num_unknown_items: int
    num_resumed: int


@dataclass(frozen=True)
class _Model:
    """A model that answers requests in this process.

    Attributes:
        ask: from the inputs of a request by name to item ids and scores, arrays of shape `(rows, k)`.
        about: dict, columns that it reads as of `describe_inputs`, `max_length`, `num_items` and `reads_times`.
        item_ids: list of str, its catalogue.
        repeats: str, whether it recommends items of histories.
        fingerprint: str, equal for equal answers.
        release: frees its resources.
    """

    ask: Callable[[dict[str, np.ndarray]], tuple[np.ndarray, np.ndarray]]
    about: Mapping[str, Any]
    item_ids: list[str]
    repeats: str
    fingerprint: str
    release: Callable[[], Any] = lambda: None


def recommend_all(
    source: Run | str | os.PathLike,
    data: PreparedData | str | os.PathLike,
    out: str | os.PathLike,
    *,
    k: int = 10,
    users: Any = None,
    exclude: Any = (),
    repeats: str | None = None,
    allow: Mapping[str, Sequence[str]] | None = None,
    deny: Mapping[str, Sequence[str]] | None = None,
    request_time: int | None = None,
    context: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    restart: bool = False,
    part_users: int = PART_USERS,
) -> BulkReport:
    """Recommend items to every user of prepared data, after the whole history of each, by the rules of the served model.

    The file has a row for each recommendation: `user_id`, `rank` from 1, `item_id`, `score`; users in the order of the data. Users
    are answered in parts, which lie in `OUT.parts` until all are there. A call that was killed loses one part at most: the same
    call goes on. The file appears whole or not at all, and memory does not grow with the number of users.

    >>> recommend_all("export", "data", "recs.parquet", k=50).num_users  # doctest: +SKIP
    6040

    Args:
        source: a run or its folder, which is ranked exactly, or an export folder.
        data: prepared data or its folder. It need not be what the model was trained on: items and values that the model does not
            know are unknown, as in a request.
        out: the file to write, `.parquet` or `.csv`.
        k: int, items for each user. Default: 10.
        users: ids of users; or a text file (`.txt`) with an id on each line; or a data frame, or another file, with the column
            `user_id`. Default: all users of the data.
        exclude: item ids that are not recommended; or a data frame, or a file, with the column `item_id`. With a column `user_id`
            beside it, an item is left out for that user alone. Default: none.
        repeats: str, `"exclude"` leaves out the items of each history; `"allow"` does not. Default: that of the model.
        allow, deny: values by the name of an item property, see `Run.recommend`; of an export, those that it filters by. Default:
            none.
        request_time: int, the second of all requests, for a model that reads times. Default: when the first call began.
        context: for a model that reads the context of a request, values by name that hold for all requests. Default: unknown.
        overwrite: bool, replace the file where it exists. Default: False.
        restart: bool, drop the parts of an earlier call. Default: False.
        part_users: int, users of a part. Default: 2,048.
    Returns:
        `BulkReport`.
    Raises:
        ValueError: an argument is out of its range, or differs from that of the call whose parts are there.
        DataMismatchError: the model knows no item of the data.
        FileExistsError: `out` exists.
    """
    out = Path(out)
    if out.suffix not in ENDINGS:
        raise ValueError(f"`{out}` must end in {' or '.join(ENDINGS)}.")
    if min(k, part_users) < 1:
        raise ValueError(f"`k` and `part_users` must be at least 1. Received: k={k}, part_users={part_users}.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"`{out}` exists. Pass `overwrite` (--overwrite) to replace it, or choose another file.")
    data = data if isinstance(data, PreparedData) else PreparedData.open(data)
    rows, num_unknown_users = _wanted_users(data, users)
    common, pairs = _wanted_exclusions(exclude)
    wanted = [wanted_of(allow or {}), wanted_of(deny or {})]
    filters = sorted({*(allow or {}), *(deny or {})})
    if isinstance(source, Run) or (Path(source) / CONFIG).is_file():
        model = _open_run(source if isinstance(source, Run) else Run.open(source), filters, repeats)
    elif Path(source).is_dir():
        model = _open_export(Path(source), k, filters, repeats)
    else:
        raise ValueError(f"`{source}` is neither a run nor an export.")
    try:
        num_unknown_items = _count_unknown(data, model)
        columns = [c["column"] for c in model.about["user_features"] if c["column"] in data.users.column_names]
        arguments: dict[str, Any] = {
            "model": model.fingerprint,
            "data": data.fingerprint,
            "users": _hash(_bytes_of(data.users.select(["user_id", *columns]).take(pa.array(rows)))),
            "k": k,
            "exclude": _hash(*(item.encode() for item in common), b"" if pairs is None else _bytes_of(pairs)),
            "repeats": model.repeats if repeats is None else repeats,
            "allow": wanted[0],
            "deny": wanted[1],
            "request_time": request_time,
            "context": {name: str(value) for name, value in (context or {}).items()},
            "part_users": part_users,
        }
        with Parts(out, arguments, restart) as parts:
            requests = UserRequests(
                data,
                model.about,
                reads_times=bool(model.about["reads_times"]),
                request_time=parts.began if request_time is None else request_time,
                context=context,
                exclude=common,
                pairs=pairs,
            )
            count = -(-len(rows) // part_users)
            missing = [number for number in range(count) if not parts.path(number).is_file()]
            num_resumed = len(rows) - sum(len(rows[n * part_users : (n + 1) * part_users]) for n in missing)
            leaves_out_seen = keeps_seen(model.repeats) and not keeps_seen(arguments["repeats"])
            for number in track(missing, "Recommending"):
                here = rows[number * part_users : (number + 1) * part_users]
                parts.write(number, _answer(model, requests, here, k, wanted, leaves_out_seen))
            num_rows = parts.join(count)
    finally:
        model.release()
    return BulkReport(out, len(rows), num_rows, num_unknown_users, num_unknown_items, num_resumed)


def _answer(
    model: _Model, requests: UserRequests, users: np.ndarray, k: int, wanted: Sequence[list[str]], leaves_out_seen: bool
) -> pa.Table:
    """The recommendations to some users, in their order."""
    width = min(k, model.about["num_items"])
    ids: np.ndarray = np.full((len(users), width), "", object)
    scores = np.full((len(users), width), -np.inf, np.float32)
    max_rows = max(1, SCORES_BYTES // (4 * model.about["num_items"]))
    for members in requests.batches(users, model.about["max_length"], max_rows):
        inputs = requests(users[members])
        if leaves_out_seen:
            inputs["exclude"] = np.concatenate([inputs["exclude"], inputs["history"]], axis=1)
        inputs["k"] = np.full(len(members), k, np.int32)
        if any(wanted):
            for name, values in zip(("allow", "deny"), wanted, strict=True):
                inputs[name] = np.tile(np.array(values, object).reshape(1, -1), (len(members), 1))
        best, of_best = model.ask(inputs)
        ids[members, : best.shape[1]], scores[members, : best.shape[1]] = best, of_best
    row, rank = np.nonzero(scores > -np.inf)
    columns = [
        requests.data.users["user_id"].take(pa.array(users[row])).combine_chunks(),
        pa.array(rank + 1, pa.int32()),
        pa.array(ids[row, rank]),
        pa.array(scores[row, rank]),
    ]
    return pa.table([column.cast(kind) for column, kind in zip(columns, SCHEMA.types, strict=True)], schema=SCHEMA)


def _is_table(given: Any) -> bool:
    """Whether ids are given as a file or a data frame, and not as a list."""
    return isinstance(given, str | os.PathLike) or hasattr(given, "columns")


def _wanted_users(data: PreparedData, users: Any) -> tuple[np.ndarray, int]:
    """The rows of the users to answer, in order, and the number of ids that the data lacks."""
    if users is None:
        rows, num_unknown = np.arange(data.num_users), 0
    else:
        if not _is_table(users):
            ids = pa.array(check_ids(users), pa.string())
        elif str(users).endswith(".txt"):
            if not Path(users).is_file():
                raise ValueError(f"There is no file `{users}`.")
            lines = Path(users).read_text(encoding="utf-8").splitlines()
            ids = pa.array([line.strip() for line in lines if line.strip()], pa.string())
        else:
            ids = read_users(users)["user_id"]
        rows = user_rows(data, ids.unique())
        rows, num_unknown = np.sort(rows[rows >= 0]), int((rows < 0).sum())
    if not len(rows):
        raise ValueError(f"There is no user to recommend to: of {num_unknown:,} ids none is in the data.")
    return rows, num_unknown


def _wanted_exclusions(exclude: Any) -> tuple[Sequence[str], pa.Table | None]:
    """The items that nobody gets, and a table of `user_id` and `item_id`; see `recommend_all`."""
    if not _is_table(exclude):
        return check_ids(exclude), None
    table = read_items(exclude)
    if "user_id" not in table.column_names:
        return table["item_id"].to_pylist(), None
    return (), read_users(table.select(["user_id", "item_id"]))


def _open_run(run: Run, filters: Sequence[str], repeats: str | None) -> _Model:
    """The rules of an answer, with an exact index, behind the ids and the columns of a run."""
    own: dict[str, Any] = {"repeats": run.repeats if repeats is None else repeats, "features": run.features}
    fingerprint = _hash(*(np.ascontiguousarray(w) for w in run.model.get_weights()), _bytes_of(run.items))
    answers = Answers(as_table(run.model), run.items["num_events"], item_filter=build_filter(filters, run.items), **own)
    encoder, names = RequestEncoder(answers.inputs), [put.name for put in answers.inputs]
    ids = np.array([""] * FIRST_ITEM_INDEX + run.vocabulary.item_ids, object)

    ints, texts = tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None), tf.string)
    specs = [
        ints,
        [put.spec() for put in answers.inputs],
        ints,
        tf.TensorSpec((None,), tf.int32),
        *[texts] * (2 * bool(filters)),
    ]

    @tf.function(input_signature=specs)
    def rank(history, others, exclude, k, *wanted):
        return answers.rank(history, encoder(others), exclude, k, tf.reduce_max(k), *wanted)

    def ask(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        history, exclude = (
            run.vocabulary.encode(v.ravel()).reshape(v.shape) for v in (inputs["history"], inputs["exclude"])
        )
        others, wanted = ([_tensor(inputs[n]) for n in some if n in inputs] for some in (names, ("allow", "deny")))
        items, scores = rank(history, others, exclude, inputs["k"], *wanted)
        return ids[items.numpy()], scores.numpy()

    tower = run.model.sequence_tower
    about = {"max_length": tower.max_length, "num_items": len(run.vocabulary), "reads_times": tower.reads_times}
    return _Model(ask, describe_inputs(answers.inputs) | about, run.vocabulary.item_ids, answers.repeats, fingerprint)


def _open_export(folder: Path, k: int, filters: Sequence[str], repeats: str | None) -> _Model:
    """The newest version of an export."""
    version = latest_version(folder)
    manifest = json.loads((version / MANIFEST).read_text(encoding="utf-8"))
    check_format(version, manifest, FORMAT)
    if lacking := [name for name in filters if name not in manifest["filters"]]:
        raise ValueError(
            f"`{version}` has no filter by {lacking[0]!r}. It has: {', '.join(manifest['filters']) or 'none'}. Export with "
            f"--filter {lacking[0]}, or pass the run."
        )
    most, choice = manifest.get("max_k"), manifest.get("repeats", "exclude")
    if most is not None and k > most:
        raise ValueError(f"`{version}` recommends {most} items at most. Received: k={k}. Export with --max-k {k}.")
    if repeats is not None and keeps_seen(repeats) and not keeps_seen(choice):
        raise ValueError(
            f"`{version}` never recommends items of the history: export with --repeats allow, or pass the run."
        )
    files = sorted(path for path in version.rglob("*") if path.is_file())
    fingerprint = _hash(*(part for path in files for part in (path.name.encode(), path)))
    loaded = load_export(version, manifest["custom_ops"])
    signature = loaded.signatures["recommend_filtered" if filters else "recommend"]

    def ask(inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        found = signature(**{name: _tensor(values) for name, values in inputs.items()})
        return found["item_ids"].numpy(), found["scores"].numpy()

    def release() -> None:  # holds the loaded model, whose variables would go while its signatures are used
        if hasattr(loaded, "release"):
            loaded.release()

    none: dict[str, Any] = {f"{owner}_features": [] for owner in ("event", "context", "user")}
    about = none | manifest | {"reads_times": "timestamps" in signature.structured_input_signature[1]}
    item_ids = pyarrow.parquet.read_table(version / "assets.extra" / ITEMS, columns=["item_id"])["item_id"].to_pylist()
    return _Model(ask, about, item_ids, choice, fingerprint, release)


def _tensor(values: np.ndarray) -> tf.Tensor:
    """A tensor of an array; of no values, too, objects are text."""
    return tf.constant(values, tf.string if values.dtype == object else None, values.shape)


def _count_unknown(data: PreparedData, model: _Model) -> int:
    """How many items of the data the model lacks; an error where it knows none."""
    known = set(model.item_ids)
    number = sum(item_id not in known for item_id in data.vocabulary.item_ids)
    if number == data.num_items:
        raise DataMismatchError(
            f"The model knows none of the {number:,} items of `{data.folder or 'the data'}`, such as "
            f"{data.vocabulary.item_ids[0]!r}. Its own have ids such as {model.item_ids[0]!r}: pass data of the same "
            f"catalogue."
        )
    return number


def _hash(*parts: Any) -> str:
    """A hash of bytes, arrays and the contents of files."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            with part.open("rb") as file:
                part = hashlib.file_digest(file, "sha256").digest()
        found.update(f"{memoryview(part).nbytes} ".encode())
        found.update(part)
    return found.hexdigest()[:32]


def _bytes_of(table: pa.Table) -> pa.Buffer:
    """A table as bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return sink.getvalue()
