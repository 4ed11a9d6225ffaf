"""RecTools' SASRec (PyTorch), trained by its own trainer."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd
import torch
from common import (
    BLOCKS,
    DROPOUT,
    HEADS,
    LEARNING_RATE,
    LENGTH,
    NEGATIVES,
    THREADS,
    WIDTH,
    Clock,
    arguments,
    real_positions,
    report,
    training_sequences,
)
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

BATCH = 64


CLOCK = Clock()  # global: RecTools copies its trainer and the callbacks in it


class Timed(Callback):
    def on_train_epoch_start(self, *_):
        CLOCK.start()

    def on_train_epoch_end(self, *_):
        CLOCK.stop()


def main() -> None:
    given = arguments()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(THREADS)
    sequences = training_sequences(given.data)
    lengths = [len(s) for s in sequences]
    log = pd.DataFrame({
        Columns.User: np.repeat(np.arange(len(sequences)), lengths),
        Columns.Item: np.concatenate(sequences),
        Columns.Weight: 1.0,
        Columns.Datetime: pd.Timestamp("2000-01-01") + pd.to_timedelta(np.arange(sum(lengths)), unit="s"),
    })  # fmt: skip
    model = SASRecModel(
        n_blocks=BLOCKS, n_heads=HEADS, n_factors=WIDTH, dropout_rate=DROPOUT, session_max_len=LENGTH, lr=LEARNING_RATE,
        batch_size=BATCH, loss={"softmax": "softmax", "sampled": "sampled_softmax"}[given.loss], n_negatives=NEGATIVES,
        get_trainer_func=lambda: Trainer(
            max_epochs=given.warm_up + given.epochs, min_epochs=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, accelerator="cpu", callbacks=[Timed()],
        ),
    )  # fmt: skip
    model.fit(Dataset.construct(log))
    report(f"RecTools SASRec, {given.loss}", real_positions(sequences), CLOCK.seconds[given.warm_up :])


main()
