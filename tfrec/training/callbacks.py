"""Work between epochs: validation, the checkpoint, and the end of a training that diverged or ran out of patience."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from tfrec.data.batches import PackedBatches
from tfrec.data.splits import Split
from tfrec.evaluation.judgement import check_requests
from tfrec.evaluation.ranking import evaluate_model
from tfrec.exceptions import DivergedError
from tfrec.files import replace_folder, write_whole
from tfrec.training.config import Config
from tfrec.training.run import CHECKPOINT, HISTORY, WEIGHTS

MONITOR = "val_ndcg@10"


class Validation(keras.callbacks.Callback):
    """Ranks every user's validation target among the whole catalogue and adds the metrics to the logs of an epoch.

    Put it before callbacks that read the metrics, such as `EarlyStopping(monitor="val_ndcg@10", mode="max")`. An epoch that is not
    validated repeats the latest figures, so that those callbacks find them after every epoch.

    >>> import tfrec
    >>> data = tfrec.PreparedData.from_histories([["a", "b", "c", "a", "b"]] * 8)
    >>> split = tfrec.LeaveLastOut(data)
    >>> model = tfrec.TwoTower(tfrec.ItemTower(data.num_items, 8), tfrec.SequenceTower(max_length=4, num_heads=1))
    >>> model.compile("adam", tfrec.FullSoftmax())
    >>> batches = tfrec.PackedBatches.for_training(split, max_length=4, batch_positions=64, seed=0)
    >>> history = model.fit(batches.dataset(), epochs=2, shuffle=False, verbose=0, callbacks=[tfrec.Validation(split)])
    >>> sorted(history.history)
    ['loss', 'val_hr@10', 'val_ndcg@10']

    Args:
        split: `Split`, the data whose validation targets are ranked.
        every: int, epochs from one validation to the next; the first and the last epoch are always validated. Default: 1.
        names: the metrics that go to the logs, and so to the progress bar: any of `hr@5 hr@10 hr@20 ndcg@5 ndcg@10 ndcg@20 mrr`.
            Default: `hr@10` and `ndcg@10`.
        repeats: str, `"exclude"` or `"allow"`; see `tfrec.evaluate`. Default: `"exclude"`.
    Attributes:
        metrics: dict, all metrics of the latest validation; `{}` before the first.
        seconds: float, how long that took; 0 after an epoch that was not validated.
    """

    def __init__(
        self,
        split: Split,
        every: int = 1,
        names: Sequence[str] = ("hr@10", "ndcg@10"),
        repeats: str = "exclude",
    ) -> None:
        super().__init__()
        check_requests(split, "validation")
        self.split, self.every, self.names, self.repeats = split, every, tuple(names), repeats
        self.metrics: dict[str, float] = {}
        self.seconds = 0.0

    def on_epoch_end(self, epoch, logs=None):
        begin = time.perf_counter()
        is_due = epoch in (0, self.params["epochs"] - 1) or (epoch + 1) % self.every == 0
        if is_due:
            self.metrics = evaluate_model(self.model, self.split, "validation", self.repeats)
        self.seconds = time.perf_counter() - begin if is_due else 0.0
        if logs is not None:
            logs |= {f"val_{name}": self.metrics[name] for name in self.names if name in self.metrics}


class Progress(keras.callbacks.Callback):
    """After each epoch: keep the best weights, write the checkpoint and the history; stop when patience ends.

    Args:
        folder: the run folder.
        batches: `PackedBatches` that the model is fitted on.
        config: resolved `Config`.
        validation: the callback that validates, which comes before this one; None where nothing is validated.
    """

    def __init__(self, folder: Path, batches: PackedBatches, config: Config, validation: Validation | None) -> None:
        super().__init__()
        self.folder, self.batches, self.config, self.validation = folder, batches, config, validation
        self.history: list[dict[str, float]] = []

    @property
    def best(self) -> dict[str, float]:
        """The history row of the best epoch; of the last, where nothing is validated."""
        if self.validation is None:
            return self.history[-1]
        return max((row for row in self.history if MONITOR in row), key=lambda row: row[MONITOR])

    @property
    def is_out_of_patience(self) -> bool:
        """Whether `patience` epochs have passed since the best."""
        if not self.config.patience or not self.history:
            return False
        return len(self.history) - self.best["epoch"] >= self.config.patience

    def _state(self) -> list:
        """Every variable that the next epoch depends on: weights, random generators (of the loss too), optimizer."""
        loss = self.model.loss
        of_loss = list(getattr(loss, "variables", []))
        own = {id(v) for v in of_loss}
        lazy = self.model.table_trainer.optimizer.variables if self.model.table_trainer else []
        model = [v for v in self.model.variables if id(v) not in own]
        drawn = [v for v in of_loss if v is not getattr(loss, "item_counts", None)]  # counts follow from the data
        return [*model, *self.model.optimizer.variables, *lazy, *drawn]

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
            kept = (
                f"The run keeps the weights of epoch {self.best['epoch']}."
                if self.history
                else "No epoch was finished."
            )
            raise DivergedError(
                f"The loss became {float(logs['loss'])} in epoch {len(self.history) + 1}, step {batch + 1}. Lower "
                f"learning_rate (--set learning_rate=...), or train without --mixed-precision. {kept}"
            )

    def on_epoch_end(self, epoch, logs=None):
        val_seconds = self.validation.seconds if self.validation else 0.0
        seconds = time.perf_counter() - self._begin - val_seconds
        logs = {name: value for name, value in (logs or {}).items() if not name.startswith("val_")}
        row = {**logs, "seconds": seconds, "positions_per_second": self.batches.num_positions / seconds}
        if self.validation and val_seconds:
            row |= {f"val_{name}": value for name, value in self.validation.metrics.items()}
            row["val_seconds"] = val_seconds
        self.history.append({"epoch": epoch + 1} | {name: float(value) for name, value in row.items()})
        if self.best is self.history[-1]:
            write_whole(self.folder / WEIGHTS, self.model.save_weights)
        arrays = [v.numpy() for v in self._state()]
        write_whole(self.folder / CHECKPOINT, lambda path: np.savez(path, *arrays, history=json.dumps(self.history)))
        write_whole(self.folder / HISTORY, self._write_history)
        if MONITOR in row and self.is_out_of_patience:
            self.model.stop_training = True

    def _write_history(self, path: Path) -> None:
        columns = dict.fromkeys(name for row in self.history for name in row)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(columns))
            writer.writeheader()
            writer.writerows(self.history)


class TakePlace(keras.callbacks.Callback):
    """Puts a run in the place of an old one at the end of its first epoch. It comes after all that write to the run's folder.

    Args:
        progress: `Progress`, which writes the run.
        out: Path, the folder of the old run.
    """

    def __init__(self, progress: Progress, out: Path) -> None:
        super().__init__()
        self.progress, self.out = progress, out

    def on_epoch_end(self, epoch, logs=None):
        if self.progress.folder != self.out:
            replace_folder(self.progress.folder, self.out)
            self.progress.folder = self.out
