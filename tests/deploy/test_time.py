"""A model that reads times: the same answers in Python, in the SavedModel, over gRPC and on LiteRT."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tfrec import recommend_all
from tfrec.data.preparation import prepare
from tfrec.deploy.litert import to_litert
from tfrec.deploy.saved_model import export
from tfrec.training.config import Config
from tfrec.training.fit import train
from tfrec_serving import Client, ServingError
from tfrec_serving.server import Server

DAY = 86_400


@pytest.fixture(scope="module")
def timed_log(tmp_path_factory):
    """Four items follow each other at random; the next is item-(n + 1) within a minute, item-(n + 2) after a day."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(300):
        item, now = rng.integers(8), 10 * DAY + int(rng.integers(DAY))
        for _ in range(20):
            rows.append((f"u{user}", f"item-{item}", now))
            is_soon = rng.random() < 0.5
            now += 60 if is_soon else DAY
            item = (item + (1 if is_soon else 2)) % 40
    folder = tmp_path_factory.mktemp("timed")
    users, items, times = zip(*rows, strict=True)
    pyarrow.parquet.write_table(pa.table({"user": users, "item": items, "time": times}), folder / "log.parquet")
    return prepare(folder / "log.parquet", folder / "data")


@pytest.fixture(scope="module")
def timed_run(timed_log, tmp_path_factory):
    config = Config(
        max_length=16,
        width=16,
        dropout_rate=0.0,
        learning_rate=1e-2,
        epochs=20,
        time_bias=True,
    )
    return train(config, timed_log, tmp_path_factory.mktemp("run") / "run")


def test_the_request_time_decides(timed_run):
    """Of a next item soon and one later, half of all each: who cannot tell them apart has an NDCG of .82 at best."""
    assert timed_run.metrics["validation"]["ndcg@10"] > 0.9
    data, right = timed_run.data(), []
    for user in range(50):
        items = data.vocabulary.decode(data.history(user))[:-2]
        times = data.timestamp[data.offsets[user] : data.offsets[user + 1]].tolist()[:-2]
        last = int(items[-1].removeprefix("item-"))
        for after, step in ((60, 1), (DAY, 2)):
            best = timed_run.recommend(items, 1, timestamps=times, request_time=times[-1] + after).item_ids
            right.append(best[0] == f"item-{(last + step) % 40}")
    assert np.mean(right) > 0.75


def test_the_same_for_all_users(timed_run, timed_log, tmp_path):
    """All are asked at one time, or now."""
    users = [f"u{user}" for user in range(10)]
    recommend_all(timed_run, timed_log, tmp_path / "recs.parquet", k=3, users=users, request_time=31 * DAY)
    found = pyarrow.parquet.read_table(tmp_path / "recs.parquet")
    rows = [timed_log.users["user_id"].to_pylist().index(user) for user in found["user_id"].to_pylist()[::3]]
    histories = [timed_log.vocabulary.decode(timed_log.history(row)) for row in rows]
    times = [timed_log.timestamp[timed_log.offsets[row] : timed_log.offsets[row + 1]] for row in rows]
    expected = timed_run.recommend(histories, 3, timestamps=times, request_time=31 * DAY)
    with pytest.raises(ValueError, match="`timestamps` has a time for each item of a history: 2. Received: 1."):
        timed_run.recommend(["a", "b"], timestamps=[1])
    assert found["item_id"].to_pylist() == expected.item_ids.ravel().tolist()
    np.testing.assert_allclose(found["score"], expected.scores.ravel(), atol=1e-5)
    recommend_all(timed_run, timed_log, tmp_path / "now.parquet", k=3, users=users)
    now = pyarrow.parquet.read_table(tmp_path / "now.parquet")
    assert now["score"].to_pylist() != found["score"].to_pylist()


def test_the_same_everywhere(timed_run, tmp_path):
    """Also with the hour and the weekday of the request, which three more epochs learn a little of."""
    timed_run = train(
        dataclasses.replace(timed_run.config, calendar=True, epochs=3), timed_run.data(), tmp_path / "run"
    )
    history, times = ["item-3", "nobody", "item-5"], [100 * DAY, 100 * DAY + 60, 100 * DAY + 120]
    export(timed_run, tmp_path / "export", index="exact")
    with Server(tmp_path / "export", 0) as server, Client(f"127.0.0.1:{server.port}") as client:
        for after in (60, DAY, 30 * DAY):
            expected = timed_run.recommend(history, 5, timestamps=times, request_time=times[-1] + after)
            answer = client.recommend(history, 5, (), times, times[-1] + after)
            assert [r.item_id for r in answer] == expected.item_ids.tolist()
            np.testing.assert_allclose([r.score for r in answer], expected.scores, rtol=1e-4)
            scores = client.score(history, [r.item_id for r in answer], times, times[-1] + after)
            np.testing.assert_allclose(scores, [r.score for r in answer], rtol=1e-4)
        assert client.recommend(history, 5, (), times)  # asked now
        with pytest.raises(ServingError, match="timestamps"):
            client.recommend(history, 5)
        for width in (2, 4):
            wrong = {"history": [history], "timestamps": [[0] * width], "request_time": [0]}
            with pytest.raises(ServingError, match="INVALID_ARGUMENT.*`timestamps` must have the shape of `history`"):
                client.predict("embed_history", **wrong)
    report = to_litert(timed_run, tmp_path / "model.tflite")
    assert report.same_items > 0.98
    assert report.max_difference < 1e-4
