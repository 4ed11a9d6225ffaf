"""Every preset on real data, by the protocol: `make bench-quality`.

    python benchmarks/quality.py FOLDER [--data movielens-1m ...] [--presets default ...] [--seeds 0 1 2] [--measured]

Prepares, trains, evaluates on test once, each in a process of its own, one after the other. What is already in FOLDER is not
done again; with `--measured` nothing is trained. Prints tables in Markdown, with the baselines and what others publish, and draws
NDCG@10 against training time into FOLDER/quality.svg.
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
BASELINES = ["bigram", "item-knn", "popularity"]
PUBLISHED = {
    "movielens-1m": {
        "SASRec, one negative; antklen/sasrec-bert4rec-recsys23": (0.2500, 0.1341),
        "gSASRec; asash/gSASRec-pytorch": (0.3003, 0.1726),
        "eSASRec; blondered/transformer_benchmark": (0.3133, 0.1772),
        "SASRec, full cross-entropy; antklen/sasrec-bert4rec-recsys23": (0.3152, 0.1821),
        "SASRec, 3,000 negatives; antklen/sasrec-bert4rec-recsys23": (0.3159, 0.1857),
        "HSTU, with the time of the target; RecTools": (0.3227, 0.1879),
        "HSTU-large, with the time of the target; RecTools": (0.3642, 0.2164),
    },
    "movielens-100k": {},
    "amazon-beauty": {
        "TIGER; blondered/transformer_benchmark": (0.0648, 0.0384),
        "ActionPiece; blondered/transformer_benchmark": (0.0775, 0.0424),
        "eSASRec; blondered/transformer_benchmark": (0.0928, 0.0523),
        "SASRec, sampled softmax; blondered/transformer_benchmark": (0.0921, 0.0531),
    },
}
"""HR@10 and NDCG@10 that others report for the same protocol, and where."""


def call(*arguments: str | Path) -> None:
    """Run tfrec; on failure, say what it said."""
    done = subprocess.run(["tfrec", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"tfrec {' '.join(map(str, arguments))} failed:\n{done.stderr[-2000:]}")


def measure(folder: Path, data: str, preset: str, seed: int) -> None:
    """Train and evaluate one run, unless the folder has it."""
    run, result = folder / data / f"{preset}-{seed}", folder / data / f"{preset}-{seed}.json"
    if not (folder / data / "data").exists():
        call("prepare", data, "--out", folder / data / "data")
    if not result.exists():
        call("train", folder / data / "data", "--out", run, "--preset", preset, "--set", f"seed={seed}", "--overwrite")
        call("evaluate", run, "--json", result)


def figures(run: Path) -> dict:
    """What one run has: `model` and the baselines with their metrics; `seconds`, `validation`, `parameters`."""
    import h5py

    sizes: dict[str, int] = {}
    with h5py.File(run / "model.weights.h5") as weights:
        weights.visititems(lambda name, value: sizes.update({name: getattr(value, "size", 0)}))
    parameters = sum(size for name, size in sizes.items() if not name.startswith("optimizer"))
    metrics = json.loads((run / "metrics.json").read_text())
    own = {"seconds": metrics["seconds"], "validation": metrics["validation"]["ndcg@10"], "parameters": parameters}
    return json.loads(run.with_name(f"{run.name}.json").read_text()) | own


def spread(values: list[float]) -> str:
    """Mean and deviation, or the only value."""
    deviation = f" ± {statistics.pstdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def table(data: str, presets: dict[str, list[dict]]) -> str:
    """Presets, baselines and published figures of one data set, in Markdown."""
    lines = [f"| {data} | HR@10 | NDCG@10 | on validation | training | parameters | seeds |", "|---" * 7 + "|"]
    for preset, runs in presets.items():
        mean = {name: statistics.mean(r[name] for r in runs) for name in ("validation", "seconds")}
        cells = [spread([r["model"][name] for r in runs]) for name in ("hr@10", "ndcg@10")]
        cells += [
            f"{mean['validation']:.4f}",
            f"{mean['seconds']:,.0f} s",
            f"{runs[0]['parameters']:,}",
            str(len(runs)),
        ]
        lines.append(f"| {' | '.join([preset, *cells])} |")
    known = next(iter(presets.values()))[0]
    others = {name: (known[name]["hr@10"], known[name]["ndcg@10"]) for name in BASELINES} | PUBLISHED[data]
    lines += [f"| {name} | {hit:.4f} | {gain:.4f} | | | | |" for name, (hit, gain) in others.items()]
    return "\n".join(lines)


def draw(measured: dict[str, dict[str, list[dict]]], path: Path) -> None:
    """NDCG@10 against training time, a panel for each data set; a line for the bigram and one for the best that is published."""
    import matplotlib.pyplot as plt

    _, panels = plt.subplots(1, len(measured), figsize=(5 * len(measured), 4), squeeze=False)
    for panel, (data, presets) in zip(panels[0], measured.items(), strict=True):
        lines = {"bigram": next(iter(presets.values()))[0]["bigram"]["ndcg@10"]}
        for name, (_, gain) in sorted(PUBLISHED[data].items(), key=lambda item: item[1][1])[-1:]:
            lines[name.partition(";")[0]] = gain
        for name, gain in lines.items():
            panel.axhline(gain, color="0.7", linestyle=":")
            panel.annotate(
                name, (1, gain), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.5", size=8
            )
        for preset, runs in presets.items():
            minutes = statistics.mean(r["seconds"] for r in runs) / 60
            gains = [r["model"]["ndcg@10"] for r in runs]
            panel.errorbar(minutes, statistics.mean(gains), statistics.pstdev(gains), fmt="o")
            panel.annotate(preset, (minutes, statistics.mean(gains)), xytext=(5, 4), textcoords="offset points")
        panel.set(title=data, xlabel="training time, minutes", ylabel="test NDCG@10")
        panel.margins(0.2)
        panel.set_xlim(left=0)
    plt.tight_layout()
    plt.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--measured", action="store_true", help="show what FOLDER has; train nothing")
    given = parser.parse_args()
    measured: dict[str, dict[str, list[dict]]] = {}
    for data in given.data:
        for preset in given.presets:
            for seed in given.seeds:
                run = given.folder / data / f"{preset}-{seed}"
                if not given.measured:
                    measure(given.folder, data, preset, seed)
                if run.with_name(f"{run.name}.json").exists():
                    measured.setdefault(data, {}).setdefault(preset, []).append(figures(run))
        if data in measured:
            print(table(data, measured[data]), end="\n\n", flush=True)
    if measured:
        draw(measured, given.folder / "quality.svg")


if __name__ == "__main__":
    main()
