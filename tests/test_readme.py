"""The README keeps its word: its commands and its example run, on a small log."""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving_stubs import free_port

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {
    "movielens-100k": "synthetic",
    "epochs=60": "epochs=1",
    "train data --out run": "train data --out run --epochs 1",
    '"50,181,172"': '"item-50,item-181"',
    '"50", "181", "172"': '"item-50"',
    "50|181": "item-50|item-181",
    "--item 174": "--item item-5",
    "genres=Comedy": "'genres=interest 3'",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def small(text: str) -> str:
    """The same on a small log."""
    for long, short in SMALL.items():
        text = text.replace(long, short)
    return text


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def shell(script: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


ONE_PROCESS = """
import shlex, subprocess, sys
from tfrec.cli.main import app
for line in sys.stdin.read().splitlines():
    if line.startswith("tfrec "):
        app(shlex.split(line)[1:], standalone_mode=False)
    else:
        subprocess.run(line, shell=True, check=True)
"""


def one_process(script: str, folder: Path) -> str:
    """As `shell`, with every tfrec command in the same process: TensorFlow is imported once."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_PROCESS], input=script, cwd=folder, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_two_commands_are_on_the_first_screen():
    assert "make demo" in "\n".join(README.splitlines()[:20])
    assert "make test" in "\n".join(README.splitlines()[:20])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "lines", "printed"),
    [
        (0, 25, "Recommendation(item_id='item-"),
        (1, 15, "[Recommendation(item_id='item-52'"),  # not counting imports of pandas, comments and blank lines
        (2, 30, "own/export/1"),
    ],
    ids=["path", "frame", "tower"],
)
def test_the_examples_in_python_run_and_are_short(tmp_path, number, lines, printed):
    example = blocks("python")[number]
    assert len([line for line in example.splitlines() if line and not line.startswith("#")]) <= lines
    out = subprocess.run(
        [sys.executable, "-c", small(example)], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert out.returncode == 0, out.stderr
    assert printed in out.stdout


@pytest.mark.slow
def test_the_commands_run(tmp_path):
    _, path, serve, query, retrieval = blocks("sh")
    out = shell(small(path), tmp_path)
    assert "NDCG@10" in out
    assert "scann index over 500 items" in out
    assert len(re.findall(r"^│ \d+ ", out, re.MULTILINE)) == 5 + 2  # recommendations, and the history that is explained
    ports = {"8500": str(free_port()), "8501": str(free_port())}
    for old, new in ports.items():
        serve, query = serve.replace(old, new), query.replace(old, new)
    server = subprocess.Popen(shlex.split(serve), cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert "Serving `default`" in server.stdout.readline()
        out = shell(small(query), tmp_path)
        assert "Interest" in out  # titles
        assert '"predictions": [{"item_ids": ["item-' in out
        assert "partitioned index over 501 items" in one_process(small(retrieval), tmp_path)
    finally:
        server.terminate()
        began = time.monotonic()
        assert server.wait(20) == 0
        server.stdout.close()
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#:]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
