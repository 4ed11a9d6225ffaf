"""From a config to a run folder, and back to a model.

config.json        everything needed to rebuild
model.weights.h5   the weights of the epoch with the best validation NDCG@10
vocabulary.json    item ids in index order
items.parquet      what is known of each item
history.csv        a row for each epoch
metrics.json       the best epoch and its validation metrics
logs/              for TensorBoard
checkpoint.npz     everything that `--resume` needs, after the last finished epoch
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras

from tfrec.data.prepared import ITEMS, PreparedData
from tfrec.data.splits import LeaveLastOut
from tfrec.files import write_whole
from tfrec.training.callbacks import CHECKPOINT, Progress
from tfrec.training.compiling import compile_model
from tfrec.training.config import Config
from tfrec.training.resolve import suited
from tfrec.training.run import CONFIG, METRICS, Run


def final_config(run: Run) -> Config:
    """The config that refits a run: on every event, for as many epochs as its validation chose."""
    return dataclasses.replace(run.config, final_epochs=run.metrics["best_epoch"])


def train(
    config: Config,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Run:
    """Train a model and write its run folder.

    The weights kept are those of the epoch with the best validation NDCG@10. Ctrl-C ends training and leaves a usable run.

    Args:
        config: how.
        out: the run folder.
        resume: go on after the last finished epoch of `out`, with its config; the result is that of a run that was never
            interrupted.
        overwrite: replace `out` where it exists.
        callbacks: further Keras callbacks.
    Raises:
        DivergedError: the loss became NaN or infinite.
        ValueError: the data has no pair of events to learn from, or no user to validate on; or there is nothing to resume.
        FileExistsError: `out` exists.
    """
    out = Path(out)
    if resume:
        if not (out / CONFIG).is_file():
            raise ValueError(f"There is nothing to resume in `{out}`: it has no {CONFIG}. Leave out --resume.")
        config = Config.from_dict(json.loads((out / CONFIG).read_text(encoding="utf-8")))
    elif out.exists() and any(out.iterdir()) and not overwrite:
        raise FileExistsError(
            f"`{out}` exists. Pass --resume to go on, --overwrite to replace it, or choose another folder."
        )
    elif out.exists() and any(out.iterdir()) and not (out / CONFIG).is_file():
        raise FileExistsError(f"`{out}` is not a run, so --overwrite does not replace it. Choose another folder.")
    data = PreparedData.open(config.data)
    config = suited(config, data)
    if (config.final_epochs or 0) > (config.epochs or 0):
        raise ValueError(f"`final_epochs` is at most `epochs`. Received: {config.final_epochs} and {config.epochs}.")
    model, batches = compile_model(config, data)

    progress = Progress(out, LeaveLastOut(data), batches, config)
    progress.set_model(model)
    if resume:
        if (out / CHECKPOINT).is_file():
            progress.restore()
    else:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        config = dataclasses.replace(config, data=str(Path(config.data).resolve()))
        (out / CONFIG).write_text(json.dumps(config.to_dict(), indent=2), encoding="utf-8")
        data.vocabulary.save(out)
        shutil.copy(data.folder / ITEMS, out / ITEMS)  # type: ignore[operator]
    try:
        if not progress.is_out_of_patience:
            model.fit(
                batches.dataset(),
                epochs=config.final_epochs or config.epochs,
                initial_epoch=len(progress.history),
                shuffle=False,
                verbose=1 if sys.stdout.isatty() else 2,
                callbacks=[progress, keras.callbacks.TensorBoard(out / "logs", write_graph=False), *callbacks],
            )
    except KeyboardInterrupt:
        if not progress.history:
            raise
        print(f"\nStopped. The run keeps the weights of epoch {progress.best['epoch']}.", file=sys.stderr)
    best = progress.best
    metrics: dict[str, Any] = {
        "best_epoch": best["epoch"],
        "epochs": len(progress.history),
        "seconds": sum(row["seconds"] + row.get("val_seconds", 0) for row in progress.history),
    }
    if not config.final_epochs:
        metrics["validation"] = {
            name.removeprefix("val_"): value
            for name, value in best.items()
            if name.startswith("val_") and name != "val_seconds"
        }
    write_whole(out / METRICS, lambda path: path.write_text(json.dumps(metrics, indent=2), encoding="utf-8"))
    return Run.open(out)
