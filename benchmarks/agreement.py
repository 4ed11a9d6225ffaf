"""Compare recommendations in Python, from the reloaded SavedModel, and over gRPC with each kind of index.

    python benchmarks/agreement.py RUN [USERS]

Exports the run with every kind of index. Sends the test histories of the first USERS users. Default: all users. A model
with `time_bias` is asked at the time of each target. Prints how many of the ten recommended ids agree with Python, and the
quality of the served answers.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfrec.data.splits import LeaveLastOut
from tfrec.deploy.saved_model import export
from tfrec.index import KINDS
from tfrec.training.run import Run
from tfrec_serving import Client
from tfrec_serving.server import Server


def quality(answers: list[list[str]], targets: list[str]) -> str:
    """HR@10 and NDCG@10 of ranked ids, as text."""
    ranks = [
        answer.index(target) if target in answer else None for answer, target in zip(answers, targets, strict=True)
    ]
    gains = [0.0 if rank is None else 1 / np.log2(rank + 2) for rank in ranks]
    return f"HR@10 {np.mean([rank is not None for rank in ranks]):.4f} NDCG@10 {np.mean(gains):.4f}"


def main(folder: str, users: int | None) -> None:
    run = Run.open(folder)
    data = run.data()
    starts, ends = (array[:users] for array in LeaveLastOut(data).histories("test"))
    spans = list(zip(starts, ends, strict=True))
    histories = [data.item_index[a:b] for a, b in spans]
    ids = [run.vocabulary.decode(history) for history in histories]
    targets = run.vocabulary.decode(data.item_index[ends])
    has_times = run.model.sequence_tower.reads_times
    times = [data.timestamp[a:b] for a, b in spans] if has_times else None
    asked = data.timestamp[ends] if has_times else None
    found = run.recommend(ids, 10, timestamps=times, request_time=0 if asked is None else asked)
    python = [[i for i in row if i] for row in found.item_ids.tolist()]
    print(f"{len(ids)} histories; in Python {quality(python, targets)}")

    def compare(name: str, answers: list[list[str]], others: str = "") -> None:
        same = np.mean([a == b for a, b in zip(answers, python, strict=True)])
        shared = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(answers, python, strict=True)])
        print(f"{name:24} the same row {same:.4f}, of the ten ids {shared:.4f}, {quality(answers, targets)}{others}")

    with tempfile.TemporaryDirectory() as place:
        for kind in KINDS:
            version = export(run, Path(place, kind), index=kind)
            if kind == "exact" and not has_times:
                served = tf.saved_model.load(str(version)).signatures["serving_default"]
                rows = [served(history=tf.constant([row]))["item_ids"].numpy()[0] for row in ids]
                compare("reloaded SavedModel", [[i.decode() for i in row] for row in rows])
            with Server(version.parent, port=0) as server, Client(f"localhost:{server.port}") as client:
                answers, seconds = [], []
                for i, row in enumerate(ids):
                    query = (times[i].tolist(), int(asked[i])) if times is not None and asked is not None else ()
                    began = time.perf_counter()
                    answers.append([r.item_id for r in client.recommend(row, 10, (), *query)])
                    seconds.append(time.perf_counter() - began)
            compare(f"over gRPC, {kind}", answers, f", {1e3 * statistics.median(seconds):.2f} ms a call (median)")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
