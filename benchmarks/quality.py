"""The quality of every preset on real data, by the protocol: `make bench-quality`.

    python benchmarks/quality.py FOLDER [--data movielens-1m ...] [--presets default ...] [--seeds 0 1 2] [--measured]

Prepares, trains and evaluates once on test, each in a process of its own, one after the other. Each run adds a row to a record.
Default: FOLDER/quality.csv; `--record FILE` names another. Runs that the record has are not repeated. With `--measured` nothing is
trained. Prints tables in Markdown with the baselines and the published figures. Draws NDCG@10 against training time as an SVG
beside the record.

The record of this project is benchmarks/quality.csv.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import h5py
import matplotlib.pyplot as plt

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
"""HR@10 and NDCG@10 published by others for the same protocol, by name and source."""


COLUMNS = ["data", "preset", "seed", "hr@10", "ndcg@10", "validation", "seconds", "parameters", "commit"]
"""The columns of the record: a row for each run, a row without seed for each baseline. `validation` is NDCG@10."""


def call(*arguments: str | Path) -> str:
    """Run a command and return its output; end with its error message if it fails."""
    done = subprocess.run(list(map(str, arguments)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def measure(folder: Path, commit: str, data: str, preset: str, seed: int) -> list[dict]:
    """Train and evaluate one run; return its row and the rows of the baselines."""
    prepared, run, result = folder / data / "data", folder / data / f"{preset}-{seed}", folder / data / "test.json"
    if not prepared.exists():
        call("tfrec", "prepare", data, "--out", prepared)
    call("tfrec", "train", prepared, "--out", run, "--preset", preset, "--set", f"seed={seed}", "--overwrite")
    call("tfrec", "evaluate", run, "--json", result)
    trained, test = (json.loads(path.read_text()) for path in (run / "metrics.json", result))
    own = {
        "seed": seed,
        "validation": round(trained["validation"]["ndcg@10"], 5),
        "seconds": round(trained["seconds"]),
        "parameters": parameters(run / "model.weights.h5"),
    }
    return [
        {"data": data, "preset": name, "commit": commit}
        | {metric: round(test[contender][metric], 5) for metric in ("hr@10", "ndcg@10")}
        | (own if contender == "model" else {})
        for name, contender in [(preset, "model"), *((name, name) for name in BASELINES)]
    ]


def parameters(weights: Path) -> int:
    """The number of parameters in a file of weights, without the optimizer's variables."""
    sizes: dict[str, int] = {}
    with h5py.File(weights) as file:
        file.visititems(lambda name, value: sizes.update({name: getattr(value, "size", 0)}))
    return sum(size for name, size in sizes.items() if not name.startswith("optimizer"))


def add(record: Path, rows: list[dict]) -> None:
    """Append the rows that are not in the record yet."""
    known = recorded(record)
    with record.open("a", newline="") as lines:
        writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
        if not known:
            writer.writeheader()
        writer.writerows(row for row in rows if (row["data"], row["preset"], row.get("seed")) not in known)


def recorded(record: Path) -> set[tuple[str, str, int | None]]:
    """Data set, preset and seed of each row of the record."""
    if not record.exists():
        return set()
    return set(duckdb.execute("select data, preset, seed from read_csv(?)", [str(record)]).fetchall())


def summary(record: Path, data: str) -> list[dict]:
    """Mean and deviation over the seeds of each preset, presets first, then the baselines."""
    found = duckdb.execute(
        """select preset, list(seed order by seed) filter (seed is not null) as seeds,
            avg("hr@10") as hit, stddev_pop("hr@10") as hit_spread, avg("ndcg@10") as gain, stddev_pop("ndcg@10") as gain_spread,
            avg(validation) as validation, avg(seconds) as seconds, max(parameters) as parameters
        from read_csv($record) where data = $data group by preset order by list_position($order, preset)""",
        {"record": str(record), "data": data, "order": PRESETS + BASELINES},
    )
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def table(data: str, rows: list[dict]) -> str:
    """Presets, baselines and published figures of one data set, in Markdown."""
    lines = [f"| {data} | HR@10 | NDCG@10 | on validation | training | parameters | seeds |", "|---" * 7 + "|"]
    for row in rows:
        if row["seeds"] is None:
            lines.append("| {preset} | {hit:.4f} | {gain:.4f} | | | | |".format_map(row))
            continue
        spread = " ± {:.4f}" if len(row["seeds"]) > 1 else ""
        hit, gain = (f"{row[name]:.4f}" + spread.format(row[f"{name}_spread"]) for name in ("hit", "gain"))
        trained = "{validation:.4f} | {seconds:,.0f} s | {parameters:,}".format_map(row)
        lines.append(f"| {row['preset']} | {hit} | {gain} | {trained} | {', '.join(map(str, row['seeds']))} |")
    lines += [f"| {name} | {hit:.4f} | {gain:.4f} | | | | |" for name, (hit, gain) in PUBLISHED[data].items()]
    return "\n".join(lines)


def draw(measured: dict[str, list[dict]], path: Path) -> None:
    """Draw NDCG@10 against training time, a panel for each data set, with lines for the bigram and the best published figure."""
    figure, panels = plt.subplots(1, len(measured), figsize=(5 * len(measured), 4.5), squeeze=False)
    shown = {}
    for panel, (data, rows) in zip(panels[0], measured.items(), strict=True):
        lines = {row["preset"]: row["gain"] for row in rows if row["preset"] == "bigram"}
        for name, (_, gain) in sorted(PUBLISHED[data].items(), key=lambda item: item[1][1])[-1:]:
            lines[name.partition(";")[0]] = gain
        for name, gain in lines.items():
            panel.axhline(gain, color="0.7", linestyle=":")
            panel.annotate(
                name, (1, gain), xycoords=("axes fraction", "data"), ha="right", va="bottom", color="0.5", size=8
            )
        for row in rows:
            if row["seeds"]:
                color = f"C{PRESETS.index(row['preset'])}"
                shown[row["preset"]] = panel.errorbar(
                    row["seconds"] / 60, row["gain"], row["gain_spread"], fmt="o", color=color, capsize=3
                )
        panel.set(title=data, xlabel="training time, minutes", ylabel="test NDCG@10")
        panel.margins(0.2)
        panel.set_xlim(left=0)
    names = [preset for preset in PRESETS if preset in shown]
    figure.legend([shown[name] for name in names], names, loc="lower center", ncols=len(names), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    with plt.rc_context({"svg.hashsalt": path.stem}):  # the same figures make the same file
        figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--record", type=Path, help="a row for each run; default: FOLDER/quality.csv")
    parser.add_argument("--measured", action="store_true", help="show what the record has; train nothing")
    given = parser.parse_args()
    record = given.record or given.folder / "quality.csv"
    if given.measured:
        if not record.exists():
            parser.error(f"`{record}` does not exist: nothing was measured yet.")
    else:
        given.folder.mkdir(parents=True, exist_ok=True)
        # asked once, first: a new row in the record would make the checkout look changed
        commit = call("git", "-C", Path(__file__).parent, "describe", "--always", "--dirty").strip()
        for run in itertools.product(given.data, given.presets, given.seeds):
            if run not in recorded(record):
                add(record, measure(given.folder, commit, *run))
    measured = {data: rows for data in given.data if (rows := summary(record, data))}
    print("\n\n".join(table(data, rows) for data, rows in measured.items()))
    if measured:
        draw(measured, record.with_suffix(".svg"))


if __name__ == "__main__":
    main()
