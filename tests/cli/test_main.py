"""The commands, as a person runs them."""

import json
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from tfrec.cli.main import app, main
from tfrec.cli.tables import find_titles

COMMANDS = [
    "prepare",
    "train",
    "evaluate",
    "report",
    "export",
    "serve",
    "recommend",
    "recommend-all",
    "explain",
    "lite",
    "demo",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_complete(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in app.registered_commands:
        if option.callback.__name__.replace("_", "-") == command:
            assert option.callback.__doc__.split(";")[0].split(":")[0].strip(".") in result.output


def test_help_is_quick():
    code = "import sys\nimport tfrec.cli.main\nsys.exit(bool({'tensorflow', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def run_main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["tfrec", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code or 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "no.csv", "--out", "x"], "`no.csv` does not exist"),
        (["train", "no", "--out", "x"], "`no` is not prepared data"),
        (["train", "no", "--out", "x", "--set", "wdith=3"], "Did you mean `width`?"),
        (["train", "no", "--out", "x", "--repeats", "yes"], "`repeats` must be one of exclude, allow. Received: 'yes'"),
        (["evaluate", "no"], "`no` is not a run"),
        (["export", "no", "--out", "x"], "`no` is not a run"),
        (["recommend", "no", "--history", "a"], "`no` is neither host:port nor a folder"),
        (["recommend", "localhost:9", "--history", "a"], "UNAVAILABLE"),
        (
            ["recommend", "x:9", "--history", "a", "--event", "kind"],
            "--event takes NAME=VALUES, with commas. Received: 'kind'",
        ),
        (["recommend", "x:9", "--history", "a", "--context", "kind"], "--context takes NAME=VALUE. Received: 'kind'"),
        (
            ["recommend", "x:9", "--history", "a", "--context", "kind=a,b"],
            "--context takes NAME=VALUE. Received: 'kind=a,b'",
        ),
        (["lite", "no", "--out", "x.tflite"], "`no` is not a run"),
        (["serve", "no"], "`no` has no version folder"),
        (["bench", "serve", "no"], "`no` is not an export"),
    ],
)
def test_errors_are_one_sentence_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare"],
        ["train", "--out", "x"],
        ["train", "d", "--out", "x", "--resume", "--epochs", "3"],
        ["train", "--out", "x", "--resume", "--repeats", "allow"],
    ],
)
def test_usage_errors(monkeypatch, tmp_path, arguments):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *arguments) == 2


def test_prepare_says_what_it_guessed_and_refused(monkeypatch, capsys, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("user,item,time\nu,a,1\nu,,2\n")
    assert run_main(monkeypatch, "prepare", log, "--out", tmp_path / "data", "--max-refused", 0.9) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "user column: 'user' (guessed; --user sets it)" in said
    assert "Refused 1 of 2 rows (1 missing item id)" in said
    assert run_main(monkeypatch, "prepare", "--describe", tmp_path / "data", "--json") == 0
    assert json.loads(capsys.readouterr().out)["events"] == 1


def test_evaluate_writes_and_prints_json(monkeypatch, capsys, tmp_path, run, data_folder):
    assert run_main(monkeypatch, "evaluate", run.folder, "--split", "validation", "--json", tmp_path / "m.json") == 0
    assert "NDCG@10" in capsys.readouterr().out
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["model"]["ndcg@10"] == pytest.approx(run.metrics["validation"]["ndcg@10"])
    assert run_main(monkeypatch, "evaluate", data_folder, "--baselines-only", "--json", "-") == 0
    printed = json.loads(capsys.readouterr().out)
    assert {"popularity", "bigram", "num_users"} <= set(printed)
    assert "model" not in printed
    options = ["--baselines-only", "--against", "bigram", "--split", "test", "--json", "-"]
    assert run_main(monkeypatch, "evaluate", data_folder, *options) == 0
    said = capsys.readouterr()
    assert list(json.loads(said.out)["intervals"]) == ["bigram"]
    assert "`--split test` is called `--part test` now." in said.err
    assert run_main(monkeypatch, "evaluate", data_folder, "--baselines-only", "--against", run.folder) == 2
    assert "is none of the baselines popularity, recent-popularity" in " ".join(capsys.readouterr().err.split())
    assert run_main(monkeypatch, "evaluate", data_folder, data_folder, "--baselines-only", "--as-seeds") == 2
    assert "--as-seeds is for runs" in capsys.readouterr().err


def test_repeats_from_the_log_to_the_export(monkeypatch, capsys, tmp_path):
    """`--repeats allow` at training is the choice of everything after it, unless it is told otherwise."""
    data, run, figures = tmp_path / "data", tmp_path / "run", tmp_path / "figures.json"
    made = ["--users", 60, "--catalogue", 40, "--events-per-user", 32]
    assert run_main(monkeypatch, "prepare", "synthetic-groceries", "--out", data, *made) == 0
    tiny = ["--epochs", 1, "--set", "width=8", "--set", "num_blocks=1", "--set", "max_length=16"]
    assert run_main(monkeypatch, "train", data, "--out", run, "--repeats", "allow", *tiny) == 0
    config = json.loads((run / "config.json").read_text())
    assert (config["repeats"], config["seen_weight"]) == ("allow", 1.0)
    assert "repeat_share@10" in json.loads((run / "metrics.json").read_text())["validation"]
    capsys.readouterr()

    def evaluated(*arguments):
        assert run_main(monkeypatch, "evaluate", *arguments, "--json", figures) == 0
        result = json.loads(figures.read_text())
        return (
            result["repeats"],
            {n for n, found in result.items() if isinstance(found, dict) and "repeat_share@10" in found},
            said(),
        )

    said = lambda: " ".join(capsys.readouterr().out.split())  # noqa: E731
    baselines = {"popularity", "recent-popularity", "bigram", "item-knn"}
    choice, with_share, text = evaluated(run)
    assert (choice, with_share) == ("allow", {"model", *baselines})
    assert "seen items kept" in text
    assert "were in the user's history already. Share of them among the hits of HR@10: model" in text
    choice, with_share, text = evaluated(run, "--repeats", "exclude")
    assert (choice, with_share) == ("exclude", set())
    assert "seen items removed" in text
    assert "were in the user's history already: misses, whatever the model." in text
    assert evaluated(data, "--baselines-only")[:2] == ("exclude", set())
    assert evaluated(data, "--baselines-only", "--repeats", "allow")[:2] == ("allow", baselines)

    for more, expected in (([], "allow"), (["--repeats", "exclude"], "exclude")):
        assert run_main(monkeypatch, "export", run, "--out", tmp_path / expected, "--index", "exact", *more) == 0
        manifest = json.loads((tmp_path / expected / "1" / "tfrec_manifest.json").read_text())
        assert manifest["repeats"] == expected
        assert ("recommend_new" in manifest["signatures"]) == (expected == "allow")
        assert run_main(monkeypatch, "lite", run, "--out", tmp_path / f"{expected}.tflite", *more) == 0
        assert json.loads((tmp_path / f"{expected}.json").read_text())["repeats"] == expected


def test_evaluate_and_resume_take_data_that_has_moved(monkeypatch, capsys, tmp_path, run, data_folder):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(about | {"data": str(tmp_path / "gone")}))
    assert run_main(monkeypatch, "evaluate", folder) == 2
    assert "gone`: pass where it lies now, with --data." in capsys.readouterr().err
    assert run_main(monkeypatch, "evaluate", folder, "--data", data_folder) == 0
    assert run_main(monkeypatch, "train", "--resume", "--out", folder, "--data", data_folder) == 0
    assert run_main(monkeypatch, "prepare", "synthetic", "--out", tmp_path / "other", "--users", 50) == 0
    capsys.readouterr()
    for command in (
        ["evaluate", folder],
        ["train", "--resume", "--out", folder],
        ["train", "--final", folder, "--out", "x"],
    ):
        assert run_main(monkeypatch, *command, "--data", tmp_path / "other") == 2
        assert "its events, users or items differ" in capsys.readouterr().err


def test_queries_take_certificates_and_metadata_and_go_around_a_proxy(monkeypatch, capsys, exact_export, tmp_path):
    import grpc
    from serving_stubs import make_certificate, recommender, web_server

    cert, key = make_certificate(tmp_path)
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())], cert.read_bytes(), True)
    own = ["--ca", cert, "--certificate", cert, "--key", key, "--metadata", "authorization=Bearer a=b"]
    with web_server() as proxy, recommender("film", credentials=credentials) as stub:
        monkeypatch.delenv("no_proxy", raising=False)
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
        address = f"grpcs://localhost:{stub.port}"
        assert run_main(monkeypatch, "recommend", address, "--history", "5", "--json", *own) == 0
        assert json.loads(capsys.readouterr().out) == [{"item_id": "film", "score": 1.0}]
        bench = ["bench", "serve", exact_export, "--address", address, "--seconds", 0.1, "--clients", 1, "--json"]
        assert run_main(monkeypatch, *bench, *own) == 0
        assert json.loads(capsys.readouterr().out)["errors"] == {}
        assert {call["authorization"] for call in stub.metadata} == {"Bearer a=b"}
        assert run_main(monkeypatch, "recommend", exact_export, "--history", "item-1", "--json") == 0
        assert len(json.loads(capsys.readouterr().out)) == 10
        assert proxy.seen == []
    assert run_main(monkeypatch, "recommend", address, "--history", "5", "--metadata", "secret") == 2
    error = capsys.readouterr().err
    assert "--metadata takes name=value" in error
    assert "secret" not in error


def test_recommend_from_an_export_with_titles(monkeypatch, capsys, exact_export, run):
    history = "item-1,item-2"
    assert run_main(monkeypatch, "recommend", exact_export, "--history", history, "-k", 3, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert [r["item_id"] for r in answer] == run.recommend(history.split(","), k=3).item_ids.tolist()
    best = answer[0]["item_id"]
    assert run_main(monkeypatch, "recommend", exact_export, "--history", history, "-k", 3, "--exclude", best) == 0
    said = capsys.readouterr().out
    assert f" {best} " not in said
    assert "Interest" in said


def test_titles_are_found_in_a_run_a_version_and_an_export(exact_export, run, tmp_path):
    assert find_titles(run.folder) == find_titles(exact_export) == find_titles(exact_export / "1") != {}
    assert find_titles(tmp_path) == find_titles(None) == {}


def test_the_demo_shows_the_whole_path(monkeypatch, capfd, tmp_path):
    """One epoch, and no MovieLens anywhere: it says so and goes on with a generated log."""
    monkeypatch.setenv("TFREC_DATA_DIR", str(tmp_path / "nothing"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tfrec.data.datasets.movielens.PUBLISHER", "http://127.0.0.1:9")
    from tfrec.data.datasets import movielens
    from tfrec.data.datasets.download import Source

    monkeypatch.setattr(movielens, "ML_100K", Source("http://127.0.0.1:9/ml-100k.zip", ""))
    assert run_main(monkeypatch, "demo", "--out", tmp_path / "demo", "--epochs", 1) == 0
    said = " ".join(capfd.readouterr().out.split())
    for part in (
        "going on with a synthetic log",
        "NDCG@10",
        "over gRPC, by the ScaNN export",
        "One call took",
        "largest score difference",
        "Next:",
    ):
        assert part in said
