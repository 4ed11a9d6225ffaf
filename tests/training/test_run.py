"""The run folder: complete, portable, and read in every format."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import tfrec
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.exceptions import DataMismatchError, NewerFormatError
from tfrec.training.fit import train
from tfrec.training.resolve import resolve
from tfrec.training.run import Run

FORMATS = Path(__file__).parents[1] / "formats"


@pytest.fixture(scope="module")
def written(small_config, data, tmp_path_factory) -> Path:
    """A run folder after four epochs, as training leaves it."""
    folder = tmp_path_factory.mktemp("run") / "run"
    train(
        dataclasses.replace(small_config, epochs=4, validate_every=2, batch_positions=4096, num_blocks=1), data, folder
    )
    return folder


def test_the_run_folder_holds_what_it_should(written, small_config, data):
    assert {path.name for path in written.iterdir()} == {
        "run.json",
        "config.json",
        "model.json",
        "model.weights.h5",
        "vocabulary.json",
        "items.parquet",
        "features.json",
        "features.npz",
        "sample.npz",
        "history.csv",
        "metrics.json",
        "logs",
        "checkpoint.npz",
    }
    about = json.loads((written / "run.json").read_text())
    assert about["format_version"] == 3
    assert about["tfrec_version"] == tfrec.__version__
    assert about["fingerprint"] == data.fingerprint
    assert about["length_quantiles"] == data.length_quantiles
    changes = {"epochs": 4, "validate_every": 2, "batch_positions": 4096, "num_blocks": 1}
    expected = resolve(dataclasses.replace(small_config, **changes), LeaveLastOut(data)).to_dict()
    assert json.loads((written / "config.json").read_text()) == json.loads(json.dumps(expected))
    with (written / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[3]["loss"]) < float(rows[0]["loss"])
    validated = [row for row in rows if row["val_ndcg@10"]]
    assert [row["epoch"] for row in validated] == ["1", "2", "4"]  # the first, the last, and every second
    best = max(validated, key=lambda row: float(row["val_ndcg@10"]))
    metrics = json.loads((written / "metrics.json").read_text())
    assert metrics["best_epoch"] == int(best["epoch"])
    assert metrics["validation"]["ndcg@10"] == float(best["val_ndcg@10"])
    assert list((written / "logs").rglob("events.out.tfevents.*"))
    history = Run.open(written).history
    assert history["loss"] == [float(row["loss"]) for row in rows]
    assert np.isnan(history["val_ndcg@10"][2])


def test_a_reopened_run_has_the_same_model(written):
    a, b = Run.open(written), Run.open(written)
    for x, y in zip(a.model.get_weights(), b.model.get_weights(), strict=True):
        np.testing.assert_array_equal(x, y)
    assert a.items["item_id"].to_pylist() == a.vocabulary.item_ids


def test_the_sample_has_the_newest_events_and_nobody_is_named(run, data):
    sample = run.sample
    assert sample.num_users == 1000
    assert sample.lengths.max() <= run.model.sequence_tower.max_length + 2
    targets = LeaveLastOut(sample).targets("test")
    assert set(targets) <= set(LeaveLastOut(data).targets("test"))
    assert sample.timestamp.any()
    assert "user" not in (run.folder / "run.json").read_text()


def test_the_data_of_a_run_is_checked_and_may_have_moved(written, data_folder, data, tmp_path):
    run, moved = Run.open(written), tmp_path / "moved"
    assert run.data().fingerprint == data.fingerprint
    shutil.copytree(data_folder, moved)
    assert run.data(moved).folder == moved
    gone = dataclasses.replace(run, settings=dataclasses.replace(run.settings, data_path=str(tmp_path / "gone")))
    with pytest.raises(ValueError, match="no longer at .*gone.*: pass where it lies now, with --data"):
        gone.data()
    in_memory = dataclasses.replace(run, settings=dataclasses.replace(run.settings, data_path=None))
    with pytest.raises(ValueError, match="was trained on data in memory: pass the data"):
        in_memory.data()
    times = np.load(moved / "timestamp.npy")
    times[5] += 1
    np.save(moved / "timestamp.npy", times)
    with pytest.raises(DataMismatchError, match="is not what .* was trained on"):
        run.data(moved)


def test_a_run_travels_without_its_data(run, data, tmp_path):
    """Copied to another place, its data gone: every export, LiteRT, refresh, embeddings, recommendations."""
    folder = tmp_path / "elsewhere" / "run"
    shutil.copytree(run.folder, folder)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"data": str(tmp_path / "gone")}))
    moved = Run.open(folder)
    history = data.vocabulary.decode(data.history(0))[:10]
    assert moved.recommend(history).item_ids.tolist() == run.recommend(history).item_ids.tolist()
    for index in ("exact", "partitioned", "scann"):
        assert tfrec.export(moved, tmp_path / index, index=index).is_dir()
    assert tfrec.to_litert(moved, tmp_path / "lite" / "model.tflite").num_histories > 50
    assert tfrec.refresh(tmp_path / "exact", remove_items=[history[0]]).name == "2"
    assert tfrec.export_embeddings(moved, tmp_path / "items.parquet") == data.num_items


def test_recommend_takes_one_history_or_many(run, data):
    rows = [data.vocabulary.decode(data.history(user))[: 4 + user] for user in range(3)]
    many = run.recommend([*rows, []], k=5)
    assert many.item_ids.shape == many.scores.shape == (4, 5)
    for row, history in enumerate(rows):
        one = run.recommend(history, k=5)
        assert one.item_ids.tolist() == many.item_ids[row].tolist()
        np.testing.assert_allclose(one.scores, many.scores[row], atol=1e-5)
        assert not set(history) & set(one.item_ids)
    popular = np.array(run.items["item_id"])[np.argsort(-np.array(run.items["num_events"]), kind="stable")]
    assert many.item_ids[3].tolist() == popular[:5].tolist()
    best = many.item_ids[0, 0]
    assert best not in run.recommend(rows[0], k=5, exclude=[best]).item_ids
    assert run.recommend(rows[0], k=10_000).item_ids.shape == (200,)


def test_the_first_question_may_have_an_empty_history(run):
    fresh = Run.open(run.folder)  # what is traced for no item at all, not for a history before it
    popular = np.array(run.items["item_id"])[np.argsort(-np.array(run.items["num_events"]), kind="stable")]
    assert fresh.recommend([], k=3).item_ids.tolist() == popular[:3].tolist()
    assert fresh.score([], popular[:2].tolist()).scores.shape == (2,)
    assert fresh.explain([], ["item-1"]).contributions.shape == (1, 0)
    assert fresh.attention([]).positions.tolist() == []


def test_a_run_recommends_repeats_where_asked(run, data):
    from reference import recommend

    histories = [data.vocabulary.decode(data.history(u)) for u in range(20)] + [[]]
    given = [data.vocabulary.encode(h) for h in histories]
    assert run.repeats == "exclude"  # its config has no such field
    assert "repeats" not in json.loads((run.folder / "config.json").read_text())
    for repeats in (None, "exclude", "allow"):
        items, scores = recommend(run.model, given, 5, data.item_counts, repeats=repeats or "exclude")
        found = run.recommend(histories, 5, repeats=repeats)
        assert found.item_ids.tolist() == [run.vocabulary.decode(row) for row in items]
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)
    allowed = dataclasses.replace(run, config=dataclasses.replace(run.config, repeats="allow", seen_weight=None))
    assert allowed.repeats == "allow"
    history = histories[0]
    best = allowed.recommend(history, 5).item_ids
    np.testing.assert_array_equal(best, run.recommend(history, 5, repeats="allow").item_ids)
    assert best[0] not in allowed.recommend(history, 5, exclude=best[:1].tolist()).item_ids
    assert dataclasses.replace(run, config=None).repeats == "exclude"  # of a model that was fitted by hand
    with pytest.raises(ValueError, match="`repeats` must be one of exclude, allow. Received: 'no'"):
        run.recommend(history, repeats="no")


def test_recommendations_become_a_frame(run):
    answer = run.recommend([["item-1"], []], k=3)
    frame = answer.to_pandas()
    assert list(frame.columns) == ["history", "rank", "item_id", "score"]
    assert frame["item_id"].tolist() == answer.item_ids.reshape(-1).tolist()
    assert frame["rank"].tolist() == [1, 2, 3, 1, 2, 3]
    assert run.recommend(["item-1"], k=250).to_arrow().num_rows == 199  # the item of the history is left out


def test_recommend_filters_by_item_properties(run):
    genre = dict(zip(*(run.items[name].to_pylist() for name in ("item_id", "genres")), strict=True))
    allowed = run.recommend(["item-1"], k=8, allow={"genres": ["interest 3"]}).item_ids
    assert all(genre[i] == ["interest 3"] for i in allowed if i)
    denied = run.recommend(["item-1"], k=50, deny={"genres": ["interest 3"]}).item_ids
    assert all(genre[i] != ["interest 3"] for i in denied)
    with pytest.raises(ValueError, match="no attribute `colour` to filter by"):
        run.recommend(["item-1"], allow={"colour": ["red"]})


def test_ids_that_are_no_text_are_refused(run):
    with pytest.raises(TypeError, match=r"Ids are text, such as '50'. Received: 50 \(int\)"):
        run.recommend([50, 181])
    with pytest.raises(TypeError, match="Received: 3"):
        run.recommend(["item-1"], exclude=[3])
    with pytest.raises(
        TypeError, match=r"A history is a list of item ids, such as \['50', '181'\]. Received the text 'item-1'"
    ):
        run.recommend("item-1")


def test_a_run_of_format_1_is_read_and_resumed(tmp_path):
    """Written before runs had a format: its path of the data in the config, no sample."""
    shutil.copytree(FORMATS / "v1" / "run", tmp_path / "run")
    expected = json.loads((FORMATS / "v1" / "expected.json").read_text())
    run = Run.open(tmp_path / "run")
    answer = run.recommend(expected["history"], k=5)
    assert answer.item_ids.tolist() == [item_id for item_id, _ in expected["recommend"]]
    np.testing.assert_allclose(answer.scores, [score for _, score in expected["recommend"]], atol=1e-5)
    assert run.settings.format_version == 1
    assert run.sample.num_users == 0
    with pytest.raises(ValueError, match="no longer at `/data/prepared`"):
        run.data()
    data = PreparedData.open(FORMATS / "v1" / "prepared")
    assert run.data(data).num_users == 60
    assert train(data=data, out=tmp_path / "run", resume=True).metrics["epochs"] == 3
    for index in ("exact", "scann"):
        assert tfrec.export(run, tmp_path / index, index=index).is_dir()


def test_a_run_of_a_newer_format_is_refused(written, tmp_path):
    shutil.copytree(written, tmp_path / "run")
    about = json.loads((written / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(about | {"format_version": 4, "tfrec_version": "9.9"}))
    with pytest.raises(
        NewerFormatError, match="was written by tfrec 9.9 in format 4; this tfrec reads up to 3. Upgrade tfrec."
    ):
        Run.open(tmp_path / "run")
