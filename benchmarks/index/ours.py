"""The indexes of tfrec: `python ours.py KIND FOLDER`. Each answers through a concrete function, as a signature does."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
from common import WIDTH, K, measure

from tfrec.index import build_index


def main(kind: str, folder: Path) -> None:
    name, _, storage = kind.partition("-")
    vectors, tuning = np.load(folder / "vectors.npy"), np.load(folder / "tuning.npy")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    # tuning ranks each query exactly, so it gets 300 of them, which are enough
    index = build_index(name, vectors, storage=storage or "float32", queries=tuning[:300], recall=0.955, k=K)
    took = time.perf_counter() - begin
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    own = {"build_seconds": took, "added_mib": added}
    del vectors

    def searcher():
        spec = tf.TensorSpec((None, WIDTH))
        query = tf.function(lambda q: index.query(q, K)[1], input_signature=[spec]).get_concrete_function()
        return lambda queries: query(tf.constant(queries)).numpy()

    measure(kind, index.settings | {"chosen": True}, searcher(), folder, **own)
    chosen = getattr(index, "probes", 0)
    if name != "exact" and index.settings.get("leaves"):
        for probes in sorted({max(1, round(chosen * factor)) for factor in (0.25, 0.5, 2, 4, 8)} - {chosen}):
            index.probes = probes
            measure(kind, probes, searcher(), folder, **own)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
