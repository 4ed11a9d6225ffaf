"""The same histories, four ways: in Python, in the reloaded SavedModel, over gRPC, and with ScaNN.

    python benchmarks/agreement.py RUN

Exports the run with an exact and a ScaNN index, and prints for how many of 1,000 users' test histories the ten recommended
ids are the same, and the share of the exact ten that ScaNN finds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from tfrec.evaluation import recommend
from tfrec.export import MANIFEST, export
from tfrec.splits import LeaveLastOut
from tfrec.training import Run
from tfrec_serving import Client
from tfrec_serving.server import Server

NUM_HISTORIES = 1000


def main(folder: str) -> None:
    run = Run.open(folder)
    data = run.data()
    starts, ends = (array[:NUM_HISTORIES] for array in LeaveLastOut(data).histories("test"))
    histories = [data.item_index[a:b] for a, b in zip(starts, ends, strict=True)]
    ids = [run.vocabulary.decode(history) for history in histories]
    python = [run.vocabulary.decode(row) for row in recommend(run.model, histories, 10, run.items["num_events"])[0]]

    with tempfile.TemporaryDirectory() as place:
        exact, scann = (export(run, Path(place, kind), index=kind) for kind in ("exact", "scann"))
        served = tf.saved_model.load(str(exact)).signatures["serving_default"]
        reloaded = [[i.decode() for i in served(history=tf.constant([row]))["item_ids"].numpy()[0]] for row in ids]
        answers, latency = {}, {}
        for kind, version in (("exact", exact), ("scann", scann)):
            with Server(version.parent, port=0) as server, Client(f"localhost:{server.port}") as client:
                answers[kind], seconds = [], []
                for row in ids:
                    began = time.perf_counter()
                    answers[kind].append([r.item_id for r in client.recommend(row)])
                    seconds.append(time.perf_counter() - began)
                latency[kind] = 1e3 * statistics.median(seconds)
        recall = json.loads((scann / MANIFEST).read_text())["index"]["recall@10"]

    def same(answer):
        return float(np.mean([a == b for a, b in zip(answer, python, strict=True)]))

    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(answers["scann"], python, strict=True)])
    print(f"{len(ids)} histories, same ten ids in the same order as in Python:")
    print(f"  reloaded SavedModel, exact {same(reloaded):.4f}")
    print(f"  over gRPC, exact           {same(answers['exact']):.4f}   {latency['exact']:.2f} ms a call (median)")
    print(f"  over gRPC, ScaNN           {same(answers['scann']):.4f}   {latency['scann']:.2f} ms a call (median)")
    print(f"ScaNN: {overlap:.4f} of the exact ten after exclusion; recall@10 of the index {recall:.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
