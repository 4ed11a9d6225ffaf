"""Every preset on real data, by the protocol: `make bench-quality`.

    python benchmarks/quality.py FOLDER [--data movielens-1m ...] [--presets default ...] [--seeds 0 1 2]

Prepares, trains, evaluates on test once, each in a process of its own, one after the other. What is already in FOLDER is not
done again. Prints a table and draws NDCG@10 against training time into FOLDER/quality.svg.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

DATA = ["movielens-1m", "movielens-100k", "amazon-beauty"]
PRESETS = ["default", "large", "sasrec", "gsasrec", "esasrec", "hstu", "narm"]


def call(*arguments: str | Path) -> None:
    """Run tfrec; on failure, say what it said."""
    done = subprocess.run(["tfrec", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"tfrec {' '.join(map(str, arguments))} failed:\n{done.stderr[-2000:]}")


def measure(folder: Path, data: str, preset: str, seed: int) -> dict:
    """The figures of one run: `hr@10`, `ndcg@10`, `seconds`, `epoch`, `parameters`, and the baselines'."""
    run, result = folder / data / f"{preset}-{seed}", folder / data / f"{preset}-{seed}.json"
    if not (folder / data / "data").exists():
        call("prepare", data, "--out", folder / data / "data")
    if not result.exists():
        call("train", folder / data / "data", "--out", run, "--preset", preset, "--set", f"seed={seed}", "--overwrite")
        call("evaluate", run, "--json", result)
    import h5py

    with h5py.File(run / "model.weights.h5") as weights:
        sizes: list[int] = []
        weights.visititems(lambda _, value: sizes.append(value.size) if isinstance(value, h5py.Dataset) else None)
    metrics = json.loads((run / "metrics.json").read_text())
    own = {"seconds": metrics["seconds"], "epoch": metrics["best_epoch"], "parameters": sum(sizes)}
    return json.loads(result.read_text()) | own


def draw(points: dict[str, list[tuple[str, float, float]]], path: Path) -> None:
    """NDCG@10 against training time, a panel for each data set."""
    import matplotlib.pyplot as plt

    _, panels = plt.subplots(1, len(points), figsize=(5 * len(points), 4), squeeze=False)
    for panel, (data, shown) in zip(panels[0], points.items(), strict=True):
        for preset, seconds, ndcg in shown:
            panel.scatter(seconds / 60, ndcg)
            panel.annotate(preset, (seconds / 60, ndcg), xytext=(4, 4), textcoords="offset points")
        panel.set(title=data, xlabel="training time, minutes", ylabel="NDCG@10")
        panel.margins(0.2)
    plt.tight_layout()
    plt.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", default=DATA)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = parser.parse_args()
    points: dict[str, list[tuple[str, float, float]]] = {}
    for data in given.data:
        print(f"{data:24} {'HR@10':>16} {'NDCG@10':>16} {'time':>8} {'parameters':>11}")
        for preset in given.presets:
            runs = [measure(given.folder, data, preset, seed) for seed in given.seeds]
            figures = {
                name: [r["model"][name] for r in runs] for name in ("hr@10", "ndcg@10")
            } | {"seconds": [r["seconds"] for r in runs]}  # fmt: skip
            mean = {name: statistics.mean(values) for name, values in figures.items()}
            spread = {name: statistics.pstdev(values) for name, values in figures.items()}
            print(f"  {preset:22} {mean['hr@10']:.4f} +- {spread['hr@10']:.4f} {mean['ndcg@10']:.4f} +- "
                  f"{spread['ndcg@10']:.4f} {mean['seconds']:6.0f} s {runs[0]['parameters']:11,}", flush=True)  # fmt: skip
            points.setdefault(data, []).append((preset, mean["seconds"], mean["ndcg@10"]))
        for name in ("bigram", "item-knn", "popularity"):
            print(f"  {name:22} {runs[0][name]['hr@10']:.4f} {'':9} {runs[0][name]['ndcg@10']:.4f}")
    draw(points, given.folder / "quality.svg")


if __name__ == "__main__":
    main()
