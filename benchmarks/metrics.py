"""The metrics that RecTools has too, on the same lists: `python benchmarks/metrics.py DATA --rectools PYTHON`.

The lists are those of popularity and of the bigram table for 1,000 users of a split by time, or of the last events where the log
has no times. `PYTHON` is an interpreter with RecTools 0.19, which reads them from a file. A little noise leaves no ties, because
RecTools knows none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

CUTOFFS = (1, 5, 10)


def ours(folder: str, users: int, place: Path) -> dict[str, float]:
    """Our figures; what they are of goes to `place`."""
    from tfrec.data.prepared import PreparedData
    from tfrec.data.splits import LeaveLastOut, Requests
    from tfrec.data.time_split import TimeSplit
    from tfrec.data.vocabulary import FIRST_ITEM_INDEX
    from tfrec.evaluation.contenders import bigram, popularity
    from tfrec.evaluation.judgement import judge

    data = PreparedData.open(folder)
    split = TimeSplit(data, 0.1) if data.timestamp.any() else LeaveLastOut(data)
    asked = split.requests("test")
    kept = np.flatnonzero(asked.ends > asked.starts)[:users]
    number = np.diff(asked.offsets)[kept]
    targets = asked.targets[np.isin(np.repeat(np.arange(len(asked.users)), np.diff(asked.offsets)), kept)]
    offsets = np.cumsum([0, *number])
    split._requests["test"] = Requests(asked.users[kept], asked.starts[kept], asked.ends[kept], targets, offsets)
    noise = np.random.default_rng(0).random(data.num_items) * 1e-9

    def without_ties(contender):
        def made(split, part):
            scorer = contender(split, part)
            return lambda rows: scorer(rows) + noise

        return made

    vectors = np.random.default_rng(1).normal(size=(data.num_items, 8)).astype(np.float32)
    contenders = {"popularity": without_ties(popularity), "bigram": without_ties(bigram)}
    judged = judge(split, contenders, cutoffs=CUTOFFS, vectors=vectors)
    item_index, offsets = split.train_part()
    user = np.repeat(np.arange(data.num_users), np.diff(offsets))
    np.savez(
        place,
        train=np.stack([user, item_index - FIRST_ITEM_INDEX], 1),
        targets=np.stack([np.repeat(np.arange(len(kept)), number), data.item_index[targets] - FIRST_ITEM_INDEX], 1),
        vectors=vectors,
        **{name: ranking.items for name, ranking in judged.rankings.items()},
    )
    return {f"{name} {metric}": value for name in judged.names for metric, value in judged.metrics(name).items()}


PEER = """
import itertools, json, sys
import numpy as np, pandas as pd
from rectools import Columns
from rectools.metrics import *
from rectools.metrics.distances import PairwiseDistanceCalculator

found = np.load(sys.argv[1])
cutoffs = json.loads(sys.argv[2])
vectors = found["vectors"].astype(float)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

class Cosine(PairwiseDistanceCalculator):
    def _get_distances_for_item_pairs(self, first, second):
        return 1 - (vectors[np.asarray(first, int)] * vectors[np.asarray(second, int)]).sum(axis=1)

frame = lambda rows: pd.DataFrame(rows, columns=[Columns.User, Columns.Item])
train, targets, catalog = frame(found["train"]), frame(found["targets"]), range(len(vectors))
result = {}
for name in ("popularity", "bigram"):
    items = found[name]
    user, place = np.nonzero(items >= 0)
    reco = pd.DataFrame({Columns.User: user, Columns.Item: items[user, place], Columns.Rank: place + 1})
    for k in cutoffs:
        metrics = {
            "hr": HitRate(k), "recall": Recall(k), "precision": Precision(k), "f1": F1Beta(k), "map": MAP(k), "mrr": MRR(k),
            "ndcg": NDCG(k, divide_by_achievable=True), "ndcg_of_k": NDCG(k), "popularity": AvgRecPopularity(k),
            "novelty": MeanInvUserFreq(k), "serendipity": Serendipity(k), "coverage": CatalogCoverage(k, normalize=True),
            "diversity": IntraListDiversity(k, Cosine()),
        }
        values = calc_metrics(metrics, reco, targets, train, catalog)
        result |= {f"{name} {metric}@{k}": float(value) for metric, value in values.items()}
print(json.dumps(result))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="prepared folder")
    parser.add_argument("--rectools", required=True, help="interpreter with RecTools 0.19")
    parser.add_argument("--users", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "lists.npz"
        mine = ours(given.data, given.users, place)
        command = [given.rectools, "-W", "ignore", "-c", PEER, str(place), json.dumps(CUTOFFS)]
        theirs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    width = max(map(len, theirs))
    for name, value in theirs.items():
        print(f"{name:<{width}}  {mine[name]:.8f}  {value:.8f}  {abs(mine[name] - value):.1e}")
    worst = max(theirs, key=lambda name: abs(mine[name] - theirs[name]))
    largest = abs(mine[worst] - theirs[worst])
    print(
        f"{len(theirs)} figures of at most {given.users:,} users; the largest difference is {largest:.1e}, of {worst}."
    )


if __name__ == "__main__":
    main()
