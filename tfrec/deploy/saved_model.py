"""One SavedModel: raw item ids in, item ids and scores out, the index inside.

EXPORT/<version>/saved_model.pb, variables/     what TensorFlow Serving loads
EXPORT/<version>/tfrec_manifest.json            signatures, ops needed, index, where it came from
EXPORT/<version>/assets.extra/                  the warm-up file; items.parquet, for people; items added since training
"""

from __future__ import annotations

import datetime
import gc
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

import tfrec
from tfrec.data.prepared import ITEMS
from tfrec.data.splits import LeaveLastOut
from tfrec.deploy.catalogue import change_catalogue
from tfrec.deploy.check import WARMUP, check
from tfrec.deploy.serving_model import build_serving_model
from tfrec.deploy.warmup import write_warmup
from tfrec.evaluation.ranking import embed_histories
from tfrec.index import recall as measure_recall
from tfrec.training.run import Run

MANIFEST = "tfrec_manifest.json"
ADDED = "added_items.parquet"
RECALL_QUERIES = 1000


def export(
    run: Run | str | os.PathLike,
    out: str | os.PathLike,
    *,
    index: str = "scann",
    k: int = 10,
    storage: str = "float32",
    recall: float = 0.99,
    filters: Sequence[str] = (),
    add_items: pa.Table | None = None,
    remove_items: Sequence[str] = (),
) -> Path:
    """Write the next version folder of an export.

    Args:
        run: a run or its folder.
        out: the export folder: the `model_base_path` of a model server.
        index: `"exact"`, `"partitioned"` or `"scann"`.
        k: how many `serving_default` recommends.
        storage, recall: of `build_index`.
        filters: columns of `items.parquet` that `recommend_filtered` filters by: see `ItemFilter`.
        add_items, remove_items: as of `change_catalogue`.
    Returns:
        The version folder. It is written aside, checked and renamed: a server that watches `out` never sees half of one.
    """
    out = Path(out)
    aside = out / f".{os.getpid()}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        _write(run, aside, index, k, storage, recall, filters, add_items, remove_items)
        gc.collect()  # a large catalogue need not be held twice to be checked
        pa.default_memory_pool().release_unused()
        check(aside)
        version = 1 + max((int(p.name) for p in out.iterdir() if p.name.isdigit()), default=0)
        return aside.rename(out / str(version))
    except tf.errors.OpError as error:  # such as a disk that is full
        raise OSError(f"`{aside}` cannot be written: {error.message.splitlines()[0]}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _write(
    run: Run | str | os.PathLike,
    folder: Path,
    index: str,
    k: int,
    storage: str,
    recall: float,
    filters: Sequence[str],
    add_items: pa.Table | None,
    remove_items: Sequence[str],
) -> None:
    """Write the files of a version folder. The arguments are those of `export`."""
    run = run if isinstance(run, Run) else Run.open(run)
    data = run.data()
    split = LeaveLastOut(data)
    tuning, held_out = (embed_histories(run.model, split, part, RECALL_QUERIES) for part in ("validation", "test"))
    run = change_catalogue(run, add_items, remove_items) if add_items is not None or remove_items else run
    serving = build_serving_model(
        run,
        index,
        k,
        storage=storage,
        recall=recall,
        queries=tuning,
        history_length=int(np.median(data.lengths)),
        filters=filters,
    )
    options = tf.saved_model.SaveOptions(
        namespace_whitelist=list(serving.index.custom_ops),
        experimental_custom_gradients=False,  # nobody trains an export, and a process keeps every model that has some
    )
    signatures = serving.signatures
    tf.saved_model.save(serving, folder, signatures=signatures, options=options)
    (folder / WARMUP).parent.mkdir()
    pyarrow.parquet.write_table(pa.table(run.items), folder / "assets.extra" / ITEMS)
    if add_items is not None:
        pyarrow.parquet.write_table(add_items, folder / "assets.extra" / ADDED)
    write_warmup(folder / WARMUP, data, run.config, k, filters)
    manifest = {
        "tfrec_version": tfrec.__version__,
        "tensorflow_version": tf.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "signatures": {name: describe_signature(function) for name, function in signatures.items()},
        "custom_ops": list(serving.index.custom_ops),
        "index": {
            "kind": index,
            "is_exact": serving.index.is_exact,
            "settings": serving.index.settings,
            "recall_asked": recall,
            "recall@10": measure_recall(serving.index, held_out),
            "recall_queries": len(held_out),
        },
        "filters": list(filters),
        "k": k,
        "num_items": len(run.vocabulary),
        "num_added_items": 0 if add_items is None else len(add_items),
        "removed_items": list(remove_items),
        "max_length": run.config.max_length,
        "run": str(run.folder.resolve()),
        "data": run.config.data,
        "config": run.config.to_dict(),
        "metrics": run.metrics,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")
    serving.release()


def refresh(
    folder: str | os.PathLike,
    *,
    add_items: pa.Table | None = None,
    remove_items: Sequence[str] = (),
    run: Run | str | os.PathLike | None = None,
) -> Path:
    """Write the next version of an export, with items added or removed since its newest one, and all else as it was.

    Args:
        folder: the export folder.
        add_items, remove_items: as of `change_catalogue`.
        run: the run it came from, where that has moved.
    """
    newest = latest_version(folder)
    manifest = json.loads((newest / MANIFEST).read_text(encoding="utf-8"))
    before = newest / "assets.extra" / ADDED
    added = [pyarrow.parquet.read_table(before)] if before.is_file() else []
    added += [] if add_items is None else [add_items]
    table = pa.concat_tables(added, promote_options="permissive") if added else None
    gone = set(remove_items)
    if table is not None:  # what was added and is removed again was never there
        is_kept = [i not in gone for i in table["item_id"].to_pylist()]
        gone -= set(table["item_id"].to_pylist())
        table = table.filter(pa.array(is_kept))
    return export(
        manifest["run"] if run is None else run,
        newest.parent,
        index=manifest["index"]["kind"],
        k=manifest["k"],
        storage=manifest["index"]["settings"]["storage"],
        recall=manifest["index"]["recall_asked"],
        filters=manifest["filters"],
        add_items=table,
        remove_items=[*manifest["removed_items"], *sorted(gone)],
    )


def describe_signature(function) -> dict[str, dict[str, list]]:
    """`{"inputs": {name: [dtype, shape]}, "outputs": ...}` of a signature."""
    concrete = function.get_concrete_function()
    describe = lambda specs: {name: [spec.dtype.name, spec.shape.as_list()] for name, spec in sorted(specs.items())}  # noqa: E731
    inputs = {spec.name: spec for spec in concrete.structured_input_signature[0] if isinstance(spec, tf.TensorSpec)}
    return {"inputs": describe(inputs), "outputs": describe(concrete.structured_outputs)}


def latest_version(folder: str | os.PathLike) -> Path:
    """The newest version folder of an export, or `folder` itself where it is one.

    Raises:
        ValueError: it is neither.
    """
    folder = Path(folder)
    if (folder / "saved_model.pb").is_file():
        return folder
    versions = [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    if not versions:
        raise ValueError(
            f"`{folder}` is not an export: it has no version folder. Make one with `tfrec export RUN --out {folder}`."
        )
    return max(versions, key=lambda p: int(p.name))
