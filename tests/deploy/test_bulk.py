"""Recommendations for all users, in one file: the rules of the served model, calls that go on, files that appear whole."""

import dataclasses
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
import pytest

from tfrec import recommend_all
from tfrec.cli.main import main
from tfrec.data.features import Feature
from tfrec.data.prepared import PreparedData
from tfrec.data.vocabulary import Vocabulary
from tfrec.deploy import bulk
from tfrec.deploy.check import load_export
from tfrec.deploy.parts import Parts
from tfrec.deploy.saved_model import MANIFEST
from tfrec.deploy.user_requests import UNKNOWN, UserRequests
from tfrec.exceptions import DataMismatchError, NewerFormatError
from tfrec.training.run import Run

V1 = Path(__file__).parents[1] / "formats" / "v1"
EXPORT = V1 / "export"


@pytest.fixture(scope="module")
def data() -> PreparedData:
    """60 users with 10 events each, and 40 items."""
    return PreparedData.open(V1 / "prepared")


@pytest.fixture(scope="module")
def small_run() -> Run:
    return Run.open(V1 / "run")


@functools.cache
def loaded_once(folder: Path, *packages: str) -> SimpleNamespace:
    loaded = load_export(folder, packages)
    return SimpleNamespace(signatures=loaded.signatures, alive=loaded)  # nothing to release


@pytest.fixture(autouse=True, scope="module")
def _quick():
    """Load an export once for all tests."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bulk, "load_export", lambda folder, packages: loaded_once(folder, *packages))
        yield


@pytest.fixture(scope="module")
def everyone(data, tmp_path_factory) -> pa.Table:
    """What the export recommends to all users."""
    out = tmp_path_factory.mktemp("all") / "recs.parquet"
    report = recommend_all(EXPORT, data, out, k=5)
    assert report == bulk.BulkReport(out, 60, 300, 0, 0, 0)
    return pyarrow.parquet.read_table(out)


def lists(table: pa.Table) -> dict[str, tuple[list[str], list[float]]]:
    """The ids and the scores by user, in the order of the file."""
    found: dict = {}
    for row in table.to_pylist():
        ids, scores = found.setdefault(row["user_id"], ([], []))
        ids.append(row["item_id"])
        scores.append(row["score"])
        assert row["rank"] == len(ids)
    return found


def histories(data: PreparedData) -> list[list[str]]:
    return [data.vocabulary.decode(data.history(user)) for user in range(data.num_users)]


def alike(found: pa.Table, expected: pa.Table) -> None:
    """The same rows; scores of other batches are rounded otherwise."""
    assert found.drop_columns(["score"]).equals(expected.drop_columns(["score"]))
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-5)


def check(table: pa.Table, run: Run, data: PreparedData, same_but_for_ties, k: int = 5, **asked) -> None:
    """Every user, in the order of the data, has what `Run.recommend` gives after the whole history."""
    found, expected = lists(table), run.recommend(histories(data), k, **asked)
    assert list(found) == data.users["user_id"].to_pylist()
    same_but_for_ties([ids for ids, _ in found.values()], expected.item_ids.tolist(), expected.scores.tolist())
    np.testing.assert_allclose([scores for _, scores in found.values()], expected.scores, atol=1e-5)


def test_all_users_get_what_the_run_recommends(small_run, data, everyone, same_but_for_ties, tmp_path):
    check(everyone, small_run, data, same_but_for_ties)
    assert everyone.schema == bulk.SCHEMA
    out = tmp_path / "new" / "recs.csv"
    assert recommend_all(small_run, data, out, k=7, repeats="allow", part_users=16).num_rows == 420
    table = pyarrow.csv.read_csv(out, convert_options=pa.csv.ConvertOptions(column_types=bulk.SCHEMA))
    check(table, small_run, data, same_but_for_ties, k=7, repeats="allow")
    assert [path.name for path in out.parent.iterdir()] == ["recs.csv"]


def test_histories_of_all_lengths_keep_their_users(small_run, tmp_path, same_but_for_ties):
    """Users are answered by length, not in their order: longer than the model reads, without events, and of unknown items."""
    items, rng = small_run.vocabulary.item_ids, np.random.default_rng(0)
    made = [rng.choice(items, size) for size in (1, 30, 0, 2, 12, 8, 30, 3)]
    data = PreparedData.from_histories([*made, ["nobody", items[0], "nothing"], ["nobody"]])
    report = recommend_all(EXPORT, data, tmp_path / "recs.parquet", k=10, part_users=4)
    assert (report.num_users, report.num_unknown_items) == (10, 2)
    found = pyarrow.parquet.ParquetFile(tmp_path / "recs.parquet")
    check(found.read(), small_run, data, same_but_for_ties, k=10)
    assert found.metadata.num_row_groups == 3  # a part each: no more is in memory
    # nothing is known of user 2 and of user 9: both get the popular items
    by_user = lists(found.read())
    assert by_user["2"] == by_user["9"]


def test_fewer_items_than_asked_for(data, tmp_path):
    """Rows end where no item is left: there are 40, and those of the history are left out."""
    report = recommend_all(EXPORT, data, tmp_path / "recs.parquet", k=40)
    found = lists(pyarrow.parquet.read_table(tmp_path / "recs.parquet"))
    assert [len(ids) for ids, _ in found.values()] == [40 - len(set(history)) for history in histories(data)]
    assert report.num_rows == sum(len(ids) for ids, _ in found.values()) < 60 * 40


def test_filters_and_exclusions(small_run, data, everyone, same_but_for_ties, tmp_path):
    allow, deny = {"genres": ["interest 1", "interest 3"]}, {"genres": ["interest 3"]}
    asked = {"exclude": ["item-37", "unknown"], "allow": allow, "deny": deny}
    recommend_all(EXPORT, data, tmp_path / "filtered.parquet", k=5, **asked)
    check(pyarrow.parquet.read_table(tmp_path / "filtered.parquet"), small_run, data, same_but_for_ties, **asked)

    before = lists(everyone)
    (tmp_path / "users.txt").write_text("user-3\nuser-59\n\n user-0 \nuser-3\nnobody\n")
    best = [(user, item) for user in ("user-59", "user-3") for item in before[user][0][:2]] + [("nobody", "item-1")]
    pairs = pa.table(
        {name: [*column] for name, column in zip(("user_id", "item_id"), zip(*best, strict=True), strict=True)}
    )
    pyarrow.csv.write_csv(pairs, tmp_path / "pairs.csv")
    asked = {"users": tmp_path / "users.txt", "exclude": tmp_path / "pairs.csv"}
    report = recommend_all(EXPORT, data, tmp_path / "some.parquet", k=5, **asked)
    assert (report.num_users, report.num_unknown_users) == (3, 1)
    found = lists(pyarrow.parquet.read_table(tmp_path / "some.parquet"))
    assert list(found) == ["user-0", "user-3", "user-59"]  # the order of the data
    assert found["user-0"][0] == before["user-0"][0]
    for user in ("user-3", "user-59"):
        assert found[user][0][:3] == before[user][0][2:]
        assert not {item for owner, item in best if owner == user} & set(found[user][0])

    frame = pa.table({"user_id": ["user-7"]})
    recommend_all(EXPORT, data, tmp_path / "one.parquet", k=5, users=frame, exclude=pairs.select(["item_id"]))
    (ids, _) = lists(pyarrow.parquet.read_table(tmp_path / "one.parquet"))["user-7"]
    assert not set(ids) & set(pairs["item_id"].to_pylist())


def test_data_that_was_prepared_later(data, everyone, tmp_path):
    """The catalogue of tonight's data has another order, and items that the model has not seen."""
    ids = [*reversed(data.vocabulary.item_ids), "new"]
    place = {item_id: number for number, item_id in enumerate(ids, 2)}
    new_index = np.array([0, 1, *(place[item_id] for item_id in data.vocabulary.item_ids)], np.int32)
    later = dataclasses.replace(data, vocabulary=Vocabulary(ids), item_index=new_index[data.item_index], items=None)
    report = recommend_all(EXPORT, later, tmp_path / "recs.parquet", k=5)
    assert report.num_unknown_items == 1
    alike(pyarrow.parquet.read_table(tmp_path / "recs.parquet"), everyone)
    with pytest.raises(
        DataMismatchError, match="knows none of the 2 items of `the data`, such as 'x'. Its own have ids"
    ):
        recommend_all(EXPORT, PreparedData.from_histories([["x", "y"]]), tmp_path / "none.parquet")


def full_disk(*_):
    raise OSError("No space left on device")


KILLED = """
import sys, time
from tfrec.deploy import bulk
from tfrec.deploy.check import load_export
from tfrec.deploy.parts import Parts
from tfrec.deploy.saved_model import MANIFEST
answer = bulk._answer
def slow(*arguments):
    time.sleep(0.3)
    return answer(*arguments)
bulk._answer = slow
bulk.recommend_all(sys.argv[1], sys.argv[2], sys.argv[3], k=5, part_users=4)
"""


def test_a_killed_process_loses_one_part_at_most(data, everyone, tmp_path, monkeypatch):
    out, parts = tmp_path / "recs.parquet", tmp_path / "recs.parquet.parts"
    process = subprocess.Popen([sys.executable, "-c", KILLED, EXPORT, V1 / "prepared", out])
    try:
        until = time.monotonic() + 120
        while not (parts / "000003.parquet").is_file() and time.monotonic() < until:
            time.sleep(0.02)
        with pytest.raises(ValueError, match="Another process writes `.*recs.parquet`: wait until it ends"):
            recommend_all(EXPORT, data, out, k=5, part_users=4)
    finally:
        process.kill()
    assert process.wait(20) == -signal.SIGKILL
    written = {path.name: path.read_bytes() for path in parts.glob("0*.parquet")}
    assert 4 <= len(written) < 15
    assert not out.exists()
    (parts / ".000014.parquet.0123.partial.parquet").write_bytes(b"half of a part")  # as a kill may leave one

    asked = []
    answer = bulk._answer
    monkeypatch.setattr(bulk, "_answer", lambda *arguments: asked.append(len(arguments[2])) or answer(*arguments))
    with pytest.raises(ValueError, match=r"with other arguments: k, exclude\. Pass what that call had"):
        recommend_all(EXPORT, data, out, k=6, exclude=["item-1"], part_users=4)
    report = recommend_all(EXPORT, data, out, k=5, part_users=4)
    assert report.num_resumed == 4 * len(written)
    assert asked == [4] * (15 - len(written))
    alike(pyarrow.parquet.read_table(out), everyone)
    assert not parts.exists()


def test_restart_and_overwrite(data, tmp_path, monkeypatch):
    out = tmp_path / "recs.csv"

    with monkeypatch.context() as patched:
        patched.setattr(Parts, "write", full_disk)
        with pytest.raises(OSError, match="No space left"):
            recommend_all(EXPORT, data, out, request_time=7)
    call = tmp_path / "recs.csv.parts" / "call.json"
    began = json.loads(call.read_text())
    call.write_text(json.dumps(began | {"format_version": 9, "tfrec_version": "9.0"}))
    with pytest.raises(NewerFormatError, match="was written by tfrec 9.0 in format 9"):
        recommend_all(EXPORT, data, out)
    call.write_text(json.dumps(began))
    other = PreparedData.from_histories(histories(data)[:3])
    with pytest.raises(
        ValueError, match="with other arguments: data, users, request_time. Pass what that call had to go on, or"
    ):
        recommend_all(EXPORT, other, out)
    assert recommend_all(EXPORT, other, out, restart=True).num_rows == 30
    with pytest.raises(FileExistsError, match=r"recs.csv` exists. Pass `overwrite` \(--overwrite\)"):
        recommend_all(EXPORT, other, out)
    assert recommend_all(EXPORT, other, out, k=2, overwrite=True).num_rows == 6


def test_a_call_without_a_time_goes_on_with_that_of_the_first(data, tmp_path, monkeypatch):
    """Else the requests of one file would be at two times."""
    times, made = [], bulk.UserRequests
    monkeypatch.setattr(bulk, "UserRequests", lambda *a, **own: times.append(own["request_time"]) or made(*a, **own))
    with monkeypatch.context() as patched:
        patched.setattr("tfrec.deploy.parts.time.time", lambda: 1000.9)
        patched.setattr(Parts, "write", full_disk)
        with pytest.raises(OSError, match="No space left"):
            recommend_all(EXPORT, data, tmp_path / "recs.csv")
    recommend_all(EXPORT, data, tmp_path / "recs.csv")
    assert times == [1000, 1000]


DEVICE = {"column": "device", "kind": "category", "input": "device", "request_input": "request_device"}
LOAD = {"column": "load", "kind": "number", "input": "load", "request_input": "request_load"}
AGE = {"column": "age", "kind": "category", "request_input": "request_age"}


def test_values_are_those_of_a_log(data):
    """A value that the data does not know is one that no model knows; what is missing is missing."""
    codes = {"device": np.tile(np.array([0, 1, 2, 3, 2], np.int32), 120), "load": np.full(600, 0.5, np.float32)}
    features = {"events": [Feature("load", "number")], "context": [Feature("device", "category", ("phone", "watch"))]}
    users = data.users.append_column("age", pa.array(["old", None] * 30))
    own = dataclasses.replace(data, event_columns=codes, features=features, users=users)
    about = {"event_features": [LOAD], "context_features": [DEVICE, LOAD], "user_features": [AGE]}
    inputs = UserRequests(own, about, reads_times=False, context={"load": 2})(np.array([1, 2]))
    assert inputs["device"].tolist() == [["", UNKNOWN, "phone", "watch", "phone"] * 2] * 2
    assert inputs["load"].dtype == np.float32
    assert inputs["request_device"].tolist() == ["", ""]
    assert inputs["request_load"].tolist() == [2.0, 2.0]
    assert inputs["request_age"].tolist() == ["", "old"]
    assert inputs["exclude"].shape == (2, 0)
    assert "timestamps" not in inputs
    assert UserRequests(own, about, reads_times=False, context={"age": "young"})(np.arange(1))["request_age"] == [
        "young"
    ]

    def refused(message, data=own, context=None):
        with pytest.raises(ValueError, match=re.escape(message)):
            UserRequests(data, about, reads_times=False, context=context)

    refused("`context`: 'load' is a number. Received: 'high'.", context={"load": "high"})
    refused("the model reads no column 'colour'. It reads: age, device, load.", context={"colour": 1})
    refused(
        "The model reads the property 'age' of users, which the data lacks: prepare",
        dataclasses.replace(own, users=data.users),
    )
    refused(
        "reads the column 'load' of events, which the data lacks: prepare it with --event-feature load=number or", data
    )
    other = dataclasses.replace(own, features={"events": [Feature("load", "category")]})
    refused(
        "reads the column 'load' of events as number, and the data has it as category: prepare it as number.", other
    )


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 0}, "`k` and `part_users` must be at least 1. Received: k=0, part_users=2048."),
        ({"out": "recs.xlsx"}, "`recs.xlsx` must end in .parquet or .csv."),
        ({"source": "no"}, "`no` is neither a run nor an export"),
        ({"data": "no"}, "`no` is not prepared data"),
        ({"users": ["nobody"]}, "There is no user to recommend to: of 1 ids none is in the data."),
        ({"users": "no.txt"}, "There is no file `no.txt`."),
        (
            {"allow": {"year": ["1990"]}},
            "has no filter by 'year'. It has: genres. Export with --filter year, or pass the run.",
        ),
        ({"repeats": "allow"}, "never recommends items of the history: export with --repeats allow, or pass the run."),
        ({"repeats": "maybe"}, "`repeats` must be one of exclude, allow. Received: 'maybe'."),
        ({"context": {"device": "phone"}}, "`context`: the model reads no column 'device'. It reads: none."),
        ({"source": V1 / "run", "deny": {"colour": ["red"]}}, "The items have no attribute `colour` to filter by."),
    ],
)
def test_what_is_refused(data, tmp_path, monkeypatch, asked, message):
    monkeypatch.chdir(tmp_path)
    arguments = {"source": EXPORT, "data": data, "out": "recs.parquet"} | asked
    with pytest.raises(ValueError, match=re.escape(message)):
        recommend_all(**arguments)
    assert not Path("recs.parquet").exists()
    assert not list(Path("recs.parquet.parts").glob("0*"))


def test_the_most_that_an_export_recommends(data, tmp_path):
    shutil.copytree(EXPORT, tmp_path / "export")
    manifest = tmp_path / "export" / "1" / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"max_k": 5}))
    with pytest.raises(ValueError, match="recommends 5 items at most. Received: k=6. Export with --max-k 6."):
        recommend_all(tmp_path / "export", data, tmp_path / "recs.parquet", k=6)


def test_the_command(everyone, tmp_path, monkeypatch, capsys):
    def said(*arguments) -> str:
        words = ["tfrec", "recommend-all", EXPORT, "--data", V1 / "prepared", *arguments]
        monkeypatch.setattr("sys.argv", list(map(str, words)))
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return " ".join(capsys.readouterr().out.split())

    (tmp_path / "users.csv").write_text("user_id\nuser-5\nnobody\n")
    (tmp_path / "gone.csv").write_text("item_id\nitem-37\n")
    out = tmp_path / "recs.parquet"
    text = said("--out", out, "--k", 5, "--users", tmp_path / "users.csv")
    assert f"{out}: 5 rows for 1 users, at most 5 each. left out: 1 users that the data does not have" in text
    alike(pyarrow.parquet.read_table(out), everyone.filter(pc.field("user_id") == "user-5"))
    more = ["--exclude", tmp_path / "gone.csv", "--allow", "genres=interest 1", "--json", "--overwrite"]
    assert json.loads(said("--out", out, "-k", 3, *more))["num_rows"] == 180
    assert "item-37" not in pyarrow.parquet.read_table(out)["item_id"].to_pylist()
    report = json.loads(said("--out", tmp_path / "all.csv", "--exclude", "item-37, item-35", "--json"))
    assert (report["path"], report["num_users"]) == (str(tmp_path / "all.csv"), 60)
    assert not {"item-35", "item-37"} & set(pyarrow.csv.read_csv(tmp_path / "all.csv")["item_id"].to_pylist())
