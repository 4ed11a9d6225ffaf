"""Retrieval side by side: `make bench-index`.

    python benchmarks/index/compare.py FOLDER --peers PYTHON [--sizes 100000 1000000 5000000] [--contestants ...]

Each contestant runs in a process of its own, one after the other, on the same vectors. Prints a line of JSON for each
setting, then a table of the quickest settings that reach a recall@100 of 0.95. Draws recall against latency.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from common import prepare

HERE = Path(__file__).parent
OURS = ["exact", "partitioned", "partitioned-int8", "scann"]
PEERS = ["faiss_ivf", "faiss_hnsw", "hnswlib", "voyager"]
LARGEST_GRAPH = 1_000_000
"""The largest catalogue for HNSW graphs: building a larger one takes hours on 2 cores."""
TARGET = 0.95


def run(name: str, folder: Path, peers: str) -> list[dict]:
    """The figures of one contestant."""
    python, script = (sys.executable, "ours.py") if name in OURS else (peers, "peers.py")
    done = subprocess.run([python, str(HERE / script), name, str(folder)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for line in lines:
        print(json.dumps(line), flush=True)
    return lines


def report(results: list[dict], size: int) -> None:
    """Print the quickest setting of each contestant that reaches the recall."""
    exact = next((r for r in results if r["name"] == "exact"), None)
    print(f"\n{size:,} x 64, k = 100: the quickest with recall@100 of at least {TARGET}\n")
    print("| index | recall@10, @100 | batch 1 | of exact | batch 64 | of exact | queries/s | build | peak memory |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(r["name"] for r in results):
        good = [r for r in results if r["name"] == name and r["recall@100"] >= TARGET]
        if not good:
            print(f"| {name} | not reached | | | | | | | |")
            continue
        best = min(good, key=lambda r: r["ms_1"])
        times = [f"{exact[c] / best[c]:.1f} times" if exact else "" for c in ("ms_1", "ms_64")]
        print(
            f"| {name} | {best['recall@10']:.3f}, {best['recall@100']:.3f} | {best['ms_1']:.2f} ms | {times[0]} | "
            f"{best['ms_64']:.1f} ms | {times[1]} | {64e3 / best['ms_64']:,.0f} | {best['build_seconds']:.0f} s | "
            f"{best['peak_mib']:,.0f} MiB |"
        )


def draw(results: dict[int, list[dict]], path: Path) -> None:
    """Draw recall@100 against latency, a panel for each size and batch."""
    import matplotlib.pyplot as plt

    _, panels = plt.subplots(len(results), 2, figsize=(11, 4 * len(results)), squeeze=False)
    for row, (size, lines) in zip(panels, results.items(), strict=True):
        for panel, (batch, column) in zip(row, ((1, "ms_1"), (64, "ms_64")), strict=True):
            for name in dict.fromkeys(r["name"] for r in lines):
                points = sorted((r["recall@100"], r[column]) for r in lines if r["name"] == name)
                panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
            panel.set(title=f"{size:,} x 64, batch {batch}", xlabel="recall@100", ylabel="milliseconds", yscale="log")
            panel.legend(fontsize=7)
    plt.tight_layout()
    plt.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peers", required=True, help="Python of the peers' environment.")
    parser.add_argument("--sizes", nargs="+", type=int, default=[100_000, 1_000_000, 5_000_000])
    parser.add_argument("--contestants", nargs="+", default=[*OURS, *PEERS])
    options = parser.parse_args()
    results: dict[int, list[dict]] = {}
    for size in options.sizes:
        folder = options.folder / str(size)
        prepare(folder, size)
        results[size] = []
        for name in options.contestants:
            if size <= LARGEST_GRAPH or name not in PEERS[1:]:
                results[size] += run(name, folder, options.peers)
        report(results[size], size)
    (options.folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    draw(results, options.folder / "retrieval.svg")


if __name__ == "__main__":
    main()
