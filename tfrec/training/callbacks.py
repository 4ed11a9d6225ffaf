"""What happens after each epoch."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

import keras
import numpy as np

from tfrec.data.batches import PackedBatches
from tfrec.data.splits import LeaveLastOut
from tfrec.evaluation.ranking import evaluate_model
from tfrec.exceptions import DivergedError
from tfrec.files import write_whole
from tfrec.training.config import Config
from tfrec.training.run import WEIGHTS

CHECKPOINT, HISTORY = "checkpoint.npz", "history.csv"
MONITOR = "val_ndcg@10"
SHOWN = (MONITOR, "val_hr@10")


class Progress(keras.callbacks.Callback):
    """After each epoch: validate if it is time, keep the best weights, write the checkpoint; stop when patience ends."""

    def __init__(self, folder: Path, split: LeaveLastOut, batches: PackedBatches, config: Config) -> None:
        super().__init__()
        self.folder, self.split, self.batches, self.config = folder, split, batches, config
        self.history: list[dict[str, float]] = []

    @property
    def best(self) -> dict[str, float]:
        """The history row of the best epoch; of the last, where nothing is validated."""
        if self.config.final_epochs:
            return self.history[-1]
        return max((row for row in self.history if MONITOR in row), key=lambda row: row[MONITOR])

    @property
    def is_out_of_patience(self) -> bool:
        """Whether `patience` epochs have passed since the best."""
        if not self.config.patience or not self.history:
            return False
        return len(self.history) - self.best["epoch"] >= self.config.patience

    def _state(self) -> list:
        """Every variable that the next epoch depends on: weights, random generators (also of the loss), optimizer."""
        generator = getattr(self.model.loss, "seed_generator", None)
        lazy = self.model.table_trainer.optimizer.variables if self.model.table_trainer else []
        optimizer = self.model.optimizer.variables
        return [*self.model.variables, *optimizer, *lazy, *([generator.state] if generator else [])]

    def restore(self) -> None:
        """Load the checkpoint into the model."""
        with np.load(self.folder / CHECKPOINT) as saved:
            self.history = json.loads(str(saved["history"]))
            for i, variable in enumerate(self._state()):
                variable.assign(saved[f"arr_{i}"])

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch
        self._begin = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if not math.isfinite(float(logs["loss"])):
            epoch = len(self.history)
            kept = (
                f"The run keeps the weights of epoch {self.best['epoch']}."
                if self.history
                else "No epoch was finished."
            )
            raise DivergedError(
                f"The loss became {float(logs['loss'])} in epoch {epoch + 1}, step {batch + 1}. Lower "
                f"learning_rate (--set learning_rate=...), or train without --mixed-precision. {kept}"
            )

    def on_epoch_end(self, epoch, logs=None):
        trained, epoch = time.perf_counter(), epoch + 1
        seconds = trained - self._begin
        row = {"epoch": epoch, **logs, "seconds": seconds, "positions_per_second": self.batches.num_positions / seconds}
        is_validated = epoch in (1, self.config.epochs) or epoch % self.config.validate_every == 0
        if is_validated and not self.config.final_epochs:
            metrics = evaluate_model(self.model, self.split, "validation")
            row |= {f"val_{name}": value for name, value in metrics.items()}
            row["val_seconds"] = time.perf_counter() - trained
            logs |= {name: row[name] for name in SHOWN}  # to the progress bar and TensorBoard
        self.history.append({name: float(value) for name, value in row.items()} | {"epoch": epoch})
        if self.best is self.history[-1]:
            write_whole(self.folder / WEIGHTS, self.model.save_weights)
        arrays = [v.numpy() for v in self._state()]
        write_whole(self.folder / CHECKPOINT, lambda path: np.savez(path, *arrays, history=json.dumps(self.history)))
        write_whole(self.folder / HISTORY, self._write_history)
        if MONITOR in row and self.is_out_of_patience:
            self.model.stop_training = True

    def _write_history(self, path: Path) -> None:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(self.history[0]))  # the first epoch is validated: it has every column
            writer.writeheader()
            writer.writerows(self.history)
