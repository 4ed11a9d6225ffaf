"""The page of a report: whole in itself, readable in light and dark, and true to the figures."""

import dataclasses
import html
import html.parser
import json
import re
import shlex
import shutil
import subprocess

import numpy as np
import pytest
from typer.testing import CliRunner

import tfrec
from tfrec.cli.main import app
from tfrec.report import charts, facts
from tfrec.report.facts import rows_of_log
from tfrec.training.judging import evaluate_run, judge_run
from tfrec.training.presets import parse_settings


@pytest.fixture(scope="module")
def other(run, tmp_path_factory):
    """The same run with another seed in its config, and noise on its weights."""
    folder = tmp_path_factory.mktemp("other") / "run <2>"
    shutil.copytree(run.folder, folder)
    config = dataclasses.replace(run.config, seed=1)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    copy = tfrec.Run.open(folder)
    copy.model.item_tower.set_weights(
        [w + np.random.default_rng(0).normal(0, 0.1, w.shape) for w in copy.model.item_tower.get_weights()]
    )
    copy.model.save_weights(folder / "model.weights.h5")
    return folder


@pytest.fixture(scope="module")
def page(run, other, tmp_path_factory):
    return tfrec.write_report(run, tmp_path_factory.mktemp("report") / "report.html", against=["bigram", other])


class Tags(html.parser.HTMLParser):
    """The tags of a page, with their attributes, and tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_it_is_one_file_without_scripts_and_requests(page):
    text = page.read_text()
    tags = Tags(text)
    assert not tags.open
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in tags.found}
    assert not [a for _, a in tags.found for name in ("src", "onload", "onclick") if name in a]
    targets = [a[name] for _, a in tags.found for name in ("href", "xlink:href") if name in a]
    assert all(target.startswith("#") for target in targets)
    assert not re.findall(r"url\((?!#)|@import", text)
    ids = [a["id"] for _, a in tags.found if "id" in a]
    marks = {target[1:] for target in targets} | set(re.findall(r"url\(#([^)]+)\)", text))
    assert all(ids.count(mark) == 1 for mark in marks)  # no two charts share a mark or a clip
    assert list(page.parent.iterdir()) == [page]
    assert page.stat().st_size < 2_000_000


def test_charts_are_described_and_take_the_colours_of_the_page(page):
    text = page.read_text()
    pictures = [a for tag, a in Tags(text).found if tag == "svg"]
    assert len(pictures) >= 7
    assert all(a["role"] == "img" and len(a["aria-label"]) > 20 for a in pictures)
    assert not {colour for colour in (*charts.SERIES, charts.INK, charts.MUTED) if colour in text}
    drawn = set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{3,6})", text))
    assert drawn <= {"#ffffff", "#000000"}


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_has_contrast_in_light_and_in_dark(page):
    """WCAG 2.2: 4.5 for text, 3 for lines and marks."""
    sets = re.findall(r":root \{([^}]*--paper[^}]*)\}", page.read_text())
    assert len(sets) == 2
    for text in sets:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", text))
        for name, colour in colours.items():
            if name in ("paper", "panel", "line"):
                continue
            least = 3.0 if name.startswith("series") else 4.5
            for ground in ("paper", "panel"):
                light, dark = sorted((luminance(colour), luminance(colours[ground])), reverse=True)
                assert (light + 0.05) / (dark + 0.05) >= least, (name, ground)


def test_it_says_what_the_evaluation_says(page, run, other):
    text = page.read_text()
    judged = judge_run(run, against=["bigram", other])
    for name in judged.names:
        assert f"{judged.metrics(name)['ndcg@10']:.4f}" in text
        low, high = judged.intervals(name)["hr@10"]
        assert f"{low:.4f} to {high:.4f}" in text
    assert "run &lt;2&gt;" in text
    assert "run <2>" not in text
    assert re.search(r"<td>seed</td><td>0</td><td>1</td>", text)
    assert "2,000 users" in text
    assert text.count('class="user"') == 10
    assert "model is better than bigram by" in text


def test_the_command_writes_a_page_and_files_for_the_projector(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tfrec.report.page.charts.cloud", lambda *_: "<svg></svg>")
    said = CliRunner().invoke(
        app, ["report", str(run.folder), "--out", str(tmp_path / "a" / "page.html"), "--against", "popularity"]
    )
    assert said.exit_code == 0, said.output
    assert "open it in a browser" in said.output
    assert "<!doctype html>" in (tmp_path / "a" / "page.html").read_text()
    vectors = tmp_path / "projector"
    said = CliRunner().invoke(app, ["report", str(run.folder), "--embeddings", str(vectors)])
    assert said.exit_code == 0, said.output
    rows = np.loadtxt(vectors / "vectors.tsv", delimiter="\t")
    np.testing.assert_allclose(rows, np.asarray(run.model.item_tower.catalogue()), atol=1e-4)
    named = (vectors / "metadata.tsv").read_text().splitlines()
    assert named[0].startswith("item_id\t")
    assert len(named) == len(rows) + 1
    with pytest.raises(FileExistsError, match="exists. Choose another folder"):
        tfrec.write_projector(run, vectors)


def test_the_commands_of_a_page_make_the_run_again(page, run):
    (text,) = re.findall(r"<pre>(.*?)</pre>", page.read_text(), re.S)
    train, report = (shlex.split(line) for line in html.unescape(text).splitlines())
    assert train[:5] == ["tfrec", "train", "DATA", "--out", run.folder.name]
    assert tfrec.Config.from_dict(parse_settings(train[6::2])) == run.config
    assert report[:5] == ["tfrec", "report", run.folder.name, "--against", "bigram"]


def test_a_command_keeps_texts_that_look_like_numbers_and_rules(run):
    config = dataclasses.replace(run.config, split="time", test="0.1", validation="7d", targets=("rating>=3",))
    train, _ = facts.commands(dataclasses.replace(run, config=config), "my run", ())
    assert tfrec.Config.from_dict(parse_settings(shlex.split(train)[6::2])) == config


def test_a_catalogue_of_one_item_fitted_by_hand_has_a_page(tmp_path, monkeypatch):
    data = tfrec.PreparedData.from_histories(["aaa", "aaaa"])
    model = tfrec.TwoTower(tfrec.ItemTower(1, 4), tfrec.SequenceTower(max_length=4, num_heads=1))
    model.build()
    tfrec.Run.from_model(model, data, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    text = tfrec.write_report(".", tmp_path / "page.html", data=data).read_text()
    assert "<h1>run</h1>" in text
    assert "# run has a model or a loss of its own, which was fitted in Python\ntfrec report run</pre>" in text


def test_names_of_any_kind_stand_in_a_chart(recwarn):
    names = ["$10 to $20", "日本語", "_hidden", "<b>"]
    text = html.unescape(charts.groups(names, {"_model": [0.1] * 4, "مرحبا": [0.2] * 4}, "title", "x"))
    assert all(f">{name}</text>" in text.replace("\u200b", "") for name in [*names, "_model", "مرحبا"])
    assert not recwarn.list


def test_a_folder_is_no_page(run, tmp_path):
    with pytest.raises(ValueError, match="is a folder: pass the file to write, such as .*report.html"):
        tfrec.write_report(run, tmp_path)


def test_rows_of_a_log_in_words():
    assert rows_of_log({}) == "not known"
    manifest = {"num_rows": 1200, "num_refused": 3, "refused": {"no item": 1, "no user": 2}, "num_duplicates": 5}
    assert rows_of_log(manifest) == "1,200 read, 3 refused (2 no user, 1 no item), 5 duplicates dropped"


def test_other_runs_must_hold_out_the_same_events(run, tmp_path):
    with pytest.raises(
        ValueError, match="`no` is neither a run nor one of the baselines popularity, recent-popularity, bigram"
    ):
        evaluate_run(run, against=["no"])

    folder = tmp_path / "other"
    shutil.copytree(run.folder, folder)
    config = dataclasses.replace(run.config, split="time", test="7d")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(ValueError, match="holds out other events than .* they differ in split, test. Train both alike"):
        evaluate_run(run, against=[folder])


def test_a_run_that_is_called_model_stands_beside_the_run(run, other, tmp_path, monkeypatch):
    shutil.copytree(other, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    judged = judge_run(run, against=["model"], cutoffs=[10])
    assert judged.names == ["model", "./model"]
    assert judged.metrics("model")["ndcg@10"] == judge_run(run, against=["random"]).metrics("model")["ndcg@10"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
@pytest.mark.parametrize("size", ["390,6000", "1280,4000"])
def test_a_browser_shows_it_without_an_error(page, tmp_path, size):
    picture = tmp_path / "page.png"
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [
        f"--window-size={size}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--screenshot={picture}",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert picture.stat().st_size > 50_000
    command[5:] = ["--virtual-time-budget=2000", f"--window-size={size}", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    assert dom.count("<svg") == page.read_text().count("<svg")
