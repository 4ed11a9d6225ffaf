"""Training: from a config and prepared data to a run."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from tfrec.data.prepared import PreparedData
from tfrec.data.splits import Split
from tfrec.evaluation.judgement import check_requests
from tfrec.files import scratch, write_whole
from tfrec.models.item_tower import ItemTower
from tfrec.models.two_tower import TwoTower
from tfrec.training.callbacks import Progress, TakePlace, Validation
from tfrec.training.compiling import compile_model
from tfrec.training.config import LOSS_FIELDS, MODEL_FIELDS, Config
from tfrec.training.resolve import resolve
from tfrec.training.run import CHECKPOINT, METRICS, Run, write_run
from tfrec.training.settings import CONFIG, read_settings, split_of, without_cold

RATE_SETTERS = (keras.callbacks.LearningRateScheduler, keras.callbacks.ReduceLROnPlateau)
"""Callbacks that set the learning rate, which Keras refuses beside a schedule."""


def train(
    config: Config | None = None,
    data: PreparedData | str | os.PathLike | None = None,
    out: str | os.PathLike | None = None,
    *,
    model: TwoTower | None = None,
    loss: Callable | None = None,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Run:
    """Train a model and write its run folder.

    The run keeps the weights of the epoch with the best validation NDCG@10. Ctrl-C ends training and leaves a usable run.

    >>> import tfrec
    >>> data = tfrec.PreparedData.from_histories([["a", "b", "c", "d", "a"]] * 8)
    >>> run = tfrec.train(tfrec.Config(width=8, max_length=4, epochs=2), data)  # doctest: +SKIP
    >>> run.history["loss"]  # doctest: +SKIP
    [1.2, 1.1]

    Args:
        config: `Config`. Default: `Config()`, or with `resume` that of the run.
        data: `PreparedData` or the path of a prepared folder. Default: with `resume`, where the data lay.
        out: the run folder. Default: a new temporary folder.
        model: `TwoTower` of your own towers, built on `data.num_items` items; it takes the place of the config's fields for the
            model. One that is compiled keeps its loss and its optimizer. Default: built from the config.
        loss: a loss of your own; see `TwoTower.compile`. Default: the one that the config names.
        resume: bool, go on after the last finished epoch of `out`, with its config. The result is that of a run that was
            never interrupted. A model or a loss of your own must be given again. Default: False.
        overwrite: bool, replace `out` where it exists, once an epoch of the new run is finished. Default: False.
        callbacks: Keras callbacks. They come after the validation, so they find `val_ndcg@10` and `val_hr@10` in the logs. A
            `LearningRateScheduler` or `ReduceLROnPlateau` takes the place of the config's schedule. Default: none.
    Returns:
        `Run`, whose `history` has a value for each epoch.
    Raises:
        DivergedError: the loss became NaN or infinite.
        DataMismatchError: with `resume`, the data is not what the run was trained on.
        ValueError: the data has no pair of events to learn from, or no user to validate on; the config, the model and the
            data do not fit together; or there is nothing to resume.
        FileExistsError: `out` exists.
    """
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"`train` needs Keras on TensorFlow. KERAS_BACKEND is {keras.backend.backend()!r}: set it to `tensorflow`, or fit a "
            f"`TwoTower` with `model.fit`."
        )
    out = Path(tempfile.mkdtemp(prefix="tfrec-run-") if out is None else out)
    own = [name for name, given in (("model", model), ("loss", loss)) if given is not None]
    if resume:
        settings = read_settings(out)
        if settings.own != own:
            raise ValueError(
                f"`{out}` was trained with {' and '.join(settings.own) or 'nothing'} of your own, and --resume was given "
                f"{' and '.join(own) or 'nothing'}: give the same to `train(resume=True)`."
            )
        data, config = settings.open_data(data), settings.config
    else:
        _check_free(out, overwrite)
        if data is None:
            raise ValueError("`train` needs `data`: prepared data or the path of a prepared folder.")
        config = config or Config()
        data = without_cold(data if isinstance(data, PreparedData) else PreparedData.open(data), config)
    assert config is not None
    split = split_of(data, config)
    check_requests(split, "validation")
    config = config if resume else _fill_in(config, split, model, loss)
    has_schedule = not any(isinstance(callback, RATE_SETTERS) for callback in callbacks)
    model, batches = compile_model(config, split, model=model, loss=loss, has_schedule=has_schedule)

    validation = None if config.final_epochs else Validation(split, config.validate_every, repeats=config.repeats)
    is_replacing = overwrite and not resume and (out / CONFIG).is_file()
    folder = scratch(out) if is_replacing else out  # the old run stays until the new one has something to show
    progress = Progress(folder, batches, config, validation)
    progress.set_model(model)
    if resume:
        if (out / CHECKPOINT).is_file():
            progress.restore()
    else:
        write_run(folder, model, data, config, own)
    ours = [validation] if validation else []
    others = [keras.callbacks.TensorBoard(folder / "logs", write_graph=False)]
    others += [TakePlace(progress, out)] if is_replacing else []
    try:
        if not progress.is_out_of_patience:
            model.fit(
                batches.dataset(),
                epochs=config.final_epochs or config.epochs,
                initial_epoch=len(progress.history),
                shuffle=False,
                verbose=1 if sys.stdout.isatty() else 2,
                callbacks=[*ours, *callbacks, progress, *others],
            )
    except KeyboardInterrupt:
        if not progress.history:
            raise
        print(f"\nStopped. The run keeps the weights of epoch {progress.best['epoch']}.", file=sys.stderr)
    finally:
        if folder != out:
            shutil.rmtree(folder, ignore_errors=True)
    best = progress.best
    metrics: dict[str, Any] = {
        "best_epoch": best["epoch"],
        "epochs": len(progress.history),
        "seconds": sum(row["seconds"] + row.get("val_seconds", 0) for row in progress.history),
    }
    if validation:
        metrics["validation"] = {
            name.removeprefix("val_"): value
            for name, value in best.items()
            if name.startswith("val_") and name != "val_seconds"
        }
    write_whole(out / METRICS, lambda path: path.write_text(json.dumps(metrics, indent=2), encoding="utf-8"))
    return Run.open(out)


def final_config(run: Run) -> Config:
    """The config that refits a run on every event, for as many epochs as its validation chose.

    Raises:
        ValueError: the run was not trained by `train`.
    """
    if run.config is None:
        raise ValueError(f"`{run.folder}` was fitted by hand: there is no config to train it again with.")
    return dataclasses.replace(run.config, final_epochs=run.metrics["best_epoch"])


def _check_free(out: Path, overwrite: bool) -> None:
    """Raise unless a run may be written to `out`."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"`{out}` is a file. Choose another folder.")
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise FileExistsError(
                f"`{out}` exists. Pass --resume to go on, --overwrite to replace it, or choose another folder."
            )
        if not (out / CONFIG).is_file():
            raise FileExistsError(f"`{out}` is not a run, so --overwrite does not replace it. Choose another folder.")


def _fill_in(config: Config, split: Split, model: TwoTower | None, loss: Callable | None) -> Config:
    """Resolve a config beside a model and a loss that take the place of some of its fields, which stay open."""
    replaced: tuple[str, ...] = ()
    if model is not None:
        replaced += MODEL_FIELDS
        config.require_defaults(MODEL_FIELDS, "model")
        similarity = "cosine" if model.item_tower.normalize else "dot"
        jit_compile = bool(config.jit_compile)  # XLA refuses some operations, such as loops of unknown length
        max_length = model.sequence_tower.max_length
        config = dataclasses.replace(config, similarity=similarity, max_length=max_length, jit_compile=jit_compile)
    if loss is not None or (model is not None and model.compiled):
        replaced += LOSS_FIELDS
        config.require_defaults(LOSS_FIELDS, "loss")
    can_be_lazy = (loss is None or hasattr(loss, "draw")) and (model is None or isinstance(model.item_tower, ItemTower))
    if not can_be_lazy:
        if config.lazy_table:
            raise ValueError(
                "`lazy_table` needs the item table of `ItemTower` and a loss that draws negatives: leave it out."
            )
        config = dataclasses.replace(config, lazy_table=False)
    left_open: dict[str, Any] = {name: None for name in replaced if getattr(config, name) is None}
    named = (
        config if loss is None else dataclasses.replace(config, loss="sampled_softmax")
    )  # for the choice of lazy_table
    return dataclasses.replace(resolve(named, split), **left_open)
