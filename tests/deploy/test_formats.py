"""Exports and LiteRT files of every format are read; a newer one is refused in a sentence."""

import dataclasses
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

import tfrec
from tfrec.data.vocabulary import Vocabulary
from tfrec.deploy.catalogue import change_catalogue
from tfrec.deploy.check import check
from tfrec.deploy.litert import load, run_edge, to_litert
from tfrec.deploy.saved_model import MANIFEST, export, latest_version, refresh
from tfrec.exceptions import NewerFormatError
from tfrec.training.run import Run

V1 = Path(__file__).parents[1] / "formats" / "v1"
EXPECTED = json.loads((V1 / "expected.json").read_text())


def test_an_export_of_format_1_is_checked_answers_and_is_refreshed(tmp_path):
    report = check(latest_version(V1 / "export"))
    assert report.warmup_requests == 28
    served = tf.saved_model.load(str(V1 / "export" / "1")).signatures["serving_default"]
    found = served(history=tf.constant([EXPECTED["history"]]))
    assert [i.decode() for i in found["item_ids"].numpy()[0, :5]] == [i for i, _ in EXPECTED["recommend"]]
    np.testing.assert_allclose(found["scores"].numpy()[0, :5], [s for _, s in EXPECTED["recommend"]], atol=1e-5)
    shutil.copytree(V1 / "export", tmp_path / "export")
    assert "format_version" not in json.loads((tmp_path / "export" / "1" / MANIFEST).read_text())
    with pytest.raises(
        ValueError, match="The run of the export is no longer at `/data/run`: pass where it lies now, with --run"
    ):
        refresh(tmp_path / "export")
    new = pa.table({"item_id": ["new"], "similar_to": ["item-3"]})
    version = refresh(tmp_path / "export", add_items=new, run=V1 / "run")
    manifest = json.loads((version / MANIFEST).read_text())
    assert (manifest["format_version"], manifest["num_items"], manifest["filters"]) == (2, 41, ["genres"])
    assert manifest["repeats"] == "exclude"  # the file has no such field


def test_a_lite_file_of_format_1_runs():
    vocabulary = Vocabulary.load(V1 / "lite")
    items, scores = run_edge(load(V1 / "lite" / "model.tflite"), vocabulary.encode(EXPECTED["history"]))
    assert vocabulary.decode(items) == [i for i, _ in EXPECTED["recommend"]]
    np.testing.assert_allclose(scores, [s for _, s in EXPECTED["recommend"]], atol=1e-5)


def test_a_run_without_a_sample_exports_and_converts(tmp_path):
    """Of format 1, its data gone: every index, a warm-up file, and a LiteRT file that nothing was compared with."""
    run = Run.open(V1 / "run")
    for index in ("partitioned", "scann"):
        assert check(export(run, tmp_path / index, index=index)).warmup_requests == 28
    report = to_litert(run, tmp_path / "model.tflite", k=5)
    assert report.num_histories == 0
    assert json.loads((tmp_path / "model.json").read_text())["parity"]["same_items"] is None


def test_a_newer_export_is_refused(exact_export, tmp_path):
    shutil.copytree(exact_export, tmp_path / "export")
    path = tmp_path / "export" / "1" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 3, "tfrec_version": "9.9"}))
    with pytest.raises(
        NewerFormatError, match="was written by tfrec 9.9 in format 3; this tfrec reads up to 2. Upgrade tfrec."
    ):
        refresh(tmp_path / "export", remove_items=["item-1"])


def test_the_sidecar_says_how_to_call_the_file(run, tmp_path):
    report = to_litert(run, tmp_path / "phone.tflite", k=7)
    about = json.loads((tmp_path / "phone.json").read_text())
    assert (about["format_version"], about["tfrec_version"]) == (1, tfrec.__version__)
    assert about["inputs"] == {"history": {"dtype": "int32", "shape": [1, 24]}}
    assert about["outputs"] == {
        "items": {"dtype": "int32", "shape": [1, 7]},
        "scores": {"dtype": "float32", "shape": [1, 7]},
    }
    assert about["parity"]["same_items"] == report.same_items == 1.0


def test_two_exports_at_once_become_two_versions(run, tmp_path):
    versions: list[str] = []
    threads = [
        threading.Thread(target=lambda: versions.append(export(run, tmp_path / "e", index="exact").name))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == ["1", "2"]
    assert sorted(p.name for p in (tmp_path / "e").iterdir()) == ["1", "2"]


def test_the_catalogue_of_an_item_tower_of_ones_own_does_not_change(run):
    class Own(tfrec.AbstractItemTower):
        num_items, width = 200, 32

    model = type("Model", (), {"item_tower": Own()})()
    with pytest.raises(ValueError, match="Items can be added to an `ItemTower` .* and this run has a Own: train again"):
        change_catalogue(dataclasses.replace(run, model=model), removed=["item-1"])
