"""`tfrec explain` of a run, of an export and of a server."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import tfrec
from tfrec.cli.main import main
from tfrec.cli.tables import out
from tfrec.training.run import Run
from tfrec_serving import Client, ServingError
from tfrec_serving.server import Server

V1 = Path(__file__).parents[1] / "formats" / "v1" / "export"
HISTORY = ["item-3", "nobody", "item-7", "item-20"]


@pytest.fixture
def explain(monkeypatch, capsys):
    """Runs the command: exit code, output, error."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tfrec", "explain", *map(str, arguments)])
        for name, size in (("_width", 150), ("_height", 50)):  # a dumb terminal has 80 columns whatever COLUMNS says
            monkeypatch.setattr(out, name, size)
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code or 0, *capsys.readouterr())

    return call


def test_a_run_says_all_that_is_known(explain, run):
    asked = ["--history", ",".join(HISTORY), "--item", "item-5,nobody"]
    code, text, _ = explain(run.folder, *asked)
    assert code == 0
    assert re.search(r"item-5 Interest \d+, number \d+: score -?0\.\d{4}", text)
    assert "nobody: the model does not know it" in text
    assert len(re.findall(r"│ \d ", text)) == 8
    said = " ".join(text.split())
    assert "block 1" in said
    assert "Weights by themselves are no explanation" in said
    first, second = json.loads(explain(run.folder, *asked, "--json")[1])
    expected, attention = run.explain(HISTORY, ["item-5"]), run.attention(HISTORY)
    assert first["score"] == pytest.approx(expected.scores[0], abs=1e-6)
    assert [row["item_id"] for row in first["history"]] == HISTORY
    assert [row["position"] for row in first["history"]] == [1, 2, 3, 4]
    for name, values in (("contribution", expected.contributions), ("similarity", expected.similarities)):
        np.testing.assert_allclose([row[name] for row in first["history"]], values[0], atol=1e-6)
    assert "attention" not in first["history"][1]  # an unknown id is not read
    weights = np.array([first["history"][i]["attention"] for i in (0, 2, 3)])  # position block head
    np.testing.assert_allclose(weights, np.stack([w[:, -1] for w in attention.weights]).transpose(2, 0, 1), atol=1e-6)
    assert second["score"] is None


def test_an_export_and_a_server_say_the_same_without_attention(explain, run, exact_export):
    expected = run.explain(HISTORY, ["item-5"])
    with Server(exact_export, 0) as server:
        for source in (exact_export, f"127.0.0.1:{server.port}"):
            code, text, error = explain(source, "--history", ",".join(HISTORY), "--item", "item-5", "--json")
            assert (code, error) == (0, "")
            (found,) = json.loads(text)
            assert found["score"] == pytest.approx(expected.scores[0], abs=1e-5)
            for name, values in (("contribution", expected.contributions), ("similarity", expected.similarities)):
                np.testing.assert_allclose([row[name] for row in found["history"]], values[0], atol=1e-5)
            assert "attention" not in found["history"][0]


def test_a_run_with_features_and_without_attention(explain, tmp_path):
    data = tfrec.PreparedData.from_histories([["a", "b", "c", "d"]] * 3)
    own = {"content": tfrec.FeatureEmbedding({"year": {"kind": "number"}}, 8), "features": {"year": np.arange(4.0)}}
    tower = tfrec.SequenceTower(4, num_blocks=1, block="gru", positions=[])
    model = tfrec.TwoTower(tfrec.ItemTower(4, 8, **own), tower)
    model.build()
    run = Run.from_model(model, data, tmp_path / "run")
    code, text, _ = explain(tmp_path / "run", "--history", "a,b", "--item", "c")
    assert code == 0
    assert re.search(r"Of the score, its id gives [+-]\d\.\d{4}, its features [+-]\d\.\d{4}\.", text)
    assert "block" not in text
    (found,) = json.loads(explain(tmp_path / "run", "--history", "a,b", "--item", "c", "--json")[1])
    assert found["id_score"] + found["content_score"] == pytest.approx(run.score(["a", "b"], ["c"]).scores[0], abs=1e-5)


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_an_export_of_before_says_so_in_one_sentence(explain, scheme):
    sentence = "The model has no signature `explain`: an earlier tfrec exported it, so export its run again."
    with Server(V1, 0, 0) as server:
        port = server.rest_api_port if scheme else server.port
        address = f"{scheme}127.0.0.1:{port}"
        with Client(address) as client, pytest.raises(ServingError, match=sentence):
            client.explain(["item-3"], ["item-5"])
        code, _, error = explain(address, "--history", "item-3", "--item", "item-5")
    assert code == 2
    assert sentence in error
    assert len(error.splitlines()) == 1
