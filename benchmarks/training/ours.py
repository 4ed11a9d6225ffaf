"""tfrec with the training step of `tfrec train`, without validation."""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
from common import BLOCKS, DROPOUT, HEADS, LENGTH, NEGATIVES, WIDTH, Clock, arguments, epoch_timer, report

from tfrec.data.prepared import PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.training.compiling import compile_model
from tfrec.training.config import Config
from tfrec.training.presets import preset
from tfrec.training.resolve import resolve


def main() -> None:
    given, clock = arguments(), Clock()
    settings = {
        "max_length": LENGTH, "width": WIDTH, "num_blocks": BLOCKS, "num_heads": HEADS, "hidden_dim": WIDTH,
        "batch_positions": 4096, "dropout_rate": DROPOUT, "num_negatives": NEGATIVES,
        "loss": {"softmax": "full_softmax", "sampled": "sampled_softmax"}[given.loss],
    }  # fmt: skip
    split = LeaveLastOut(PreparedData.open(given.data))
    model, batches = compile_model(resolve(Config.from_dict(preset("sasrec") | settings), split), split)
    model.fit(
        batches.dataset(),
        epochs=given.warm_up + given.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[epoch_timer(keras.callbacks.Callback, clock)],
    )
    report(f"tfrec, {given.loss}", batches.num_positions, clock.seconds[given.warm_up :])


main()
