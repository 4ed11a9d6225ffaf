"""One SavedModel: raw item ids in, item ids and scores out, the index inside.

EXPORT/<version>/saved_model.pb, variables/     what TensorFlow Serving loads
EXPORT/<version>/tfrec_manifest.json            signatures, ops needed, index, where it came from
EXPORT/<version>/assets.extra/                  the warm-up file; items.parquet, for people; items added since training

Format 2 of the manifest. Format 1 had no `format_version`; its `data` and `config` always had a value. A manifest without
`max_k` has no limit, one without `repeats` excludes them.
"""

from __future__ import annotations

import datetime
import errno
import gc
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from tfrec.data.encoding import encode_table, input_spec
from tfrec.data.features import Feature
from tfrec.data.prepared import ITEMS
from tfrec.deploy.catalogue import change_catalogue, row_of_new_items, with_rows
from tfrec.deploy.check import WARMUP, check
from tfrec.deploy.serving_model import NewItems, build_serving_model
from tfrec.deploy.warmup import write_warmup
from tfrec.evaluation.ranking import embed_histories
from tfrec.files import scratch
from tfrec.formats import check_format
from tfrec.index import recall as measure_recall
from tfrec.index.inputs import describe_inputs
from tfrec.models.new_items import content_features
from tfrec.training.run import Run
from tfrec.version import __version__

FORMAT = 2
MAX_K = 1000
"""Items that a request gets at most, unless an export says otherwise."""
MANIFEST = "tfrec_manifest.json"
ADDED = "added_items.parquet"


def export(
    run: Run | str | os.PathLike,
    out: str | os.PathLike,
    *,
    index: str = "scann",
    k: int = 10,
    storage: str = "float32",
    recall: float = 0.99,
    filters: Sequence[str] = (),
    max_k: int | None = MAX_K,
    repeats: str | None = None,
    add_items: pa.Table | None = None,
    remove_items: Sequence[str] = (),
    after: Path | None = None,
) -> Path:
    """Write the next version folder of an export.

    It is written aside, checked and renamed: a server that watches `out` never sees half of one.

    >>> export("run", "export", index="exact")  # doctest: +SKIP
    PosixPath('export/1')

    Args:
        run: a run or its folder. Its data is not needed.
        out: the export folder, which is the `model_base_path` of a model server.
        index: `"exact"`, `"partitioned"` or `"scann"`. Default: `"scann"`.
        k: int, items that `serving_default` recommends. Default: 10.
        storage, recall: see `build_index`.
        filters: columns of the run's items that `recommend_filtered` filters by; see `ItemFilter`. Default: none.
        max_k: int, items that a request gets at most: a larger `k` is read as this. None: no limit. Default: 1,000.
        repeats: str, `"exclude"`: no signature recommends an item of the history. `"allow"`: those that recommend may return such
            items, and a further signature `recommend_new`, with the inputs of `recommend`, leaves them out. Default: as the run
            was trained, `Run.repeats`.
        add_items, remove_items: see `change_catalogue`.
        after: the version folder that this one changes, which must be the newest still. Default: none.
    Returns:
        Path of the version folder.
    Raises:
        ValueError: an argument is out of its range, the export does not load or answer, or `after` is not the newest.
        OSError: it cannot be written.
    """
    out = Path(out)
    aside = scratch(out / "version")
    try:
        _write(run, aside, index, k, storage, recall, filters, max_k, repeats, add_items, remove_items)
        gc.collect()  # a large catalogue need not be held twice to be checked
        pa.default_memory_pool().release_unused()
        check(aside)
        return _publish(aside, out, after)
    except tf.errors.OpError as error:  # such as a disk that is full
        raise OSError(f"`{aside}` cannot be written: {error.message.splitlines()[0]}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _publish(aside: Path, out: Path, after: Path | None) -> Path:
    """Rename a folder to the next version; another export may take that number first."""
    while True:
        version = 1 + max((int(p.name) for p in out.iterdir() if p.name.isdecimal()), default=0)
        if after is not None and version != int(after.name) + 1:
            raise ValueError(
                f"`{out / str(version - 1)}` was written while `{after}` was changed, and would be undone. Run the command again."
            )
        try:
            return aside.rename(out / str(version))
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise


def _write(
    run: Run | str | os.PathLike,
    folder: Path,
    index: str,
    k: int,
    storage: str,
    recall: float,
    filters: Sequence[str],
    max_k: int | None,
    repeats: str | None,
    add_items: pa.Table | None,
    remove_items: Sequence[str],
) -> None:
    """Write the files of a version folder. For the arguments, see `export`."""
    run = run if isinstance(run, Run) else Run.open(run)
    split = run.sample_split()
    tuning, held_out = (embed_histories(run.model, split, part) for part in ("validation", "test"))
    tower = run.model.item_tower
    features = content_features(tower, run.features.get("items", []))
    new_items = NewItems(tower, features, row_of_new_items(run, tuning)) if features else None
    unknown = {} if add_items is None or new_items is None else encode_table(features, add_items)[1]
    run = change_catalogue(run, add_items, remove_items) if add_items is not None or remove_items else run
    queries = tuning if len(tuning) else None
    serving = build_serving_model(
        run,
        index,
        k,
        storage=storage,
        recall=recall,
        queries=queries,
        filters=filters,
        max_k=max_k,
        repeats=repeats,
        new_items=new_items,
    )
    built, repeats = serving.answers.index, serving.answers.repeats
    options = tf.saved_model.SaveOptions(
        namespace_whitelist=list(built.custom_ops),
        experimental_custom_gradients=False,  # nobody trains an export, and a process keeps every model that has some
    )
    signatures = serving.signatures
    tf.saved_model.save(serving, folder, signatures=signatures, options=options)
    (folder / WARMUP).parent.mkdir()
    pyarrow.parquet.write_table(run.items, folder / "assets.extra" / ITEMS)
    if add_items is not None:
        pyarrow.parquet.write_table(add_items, folder / "assets.extra" / ADDED)
    write_warmup(folder / WARMUP, run, k, filters, repeats)
    manifest = {
        "format_version": FORMAT,
        "tfrec_version": __version__,
        "tensorflow_version": tf.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "signatures": {name: describe_signature(function) for name, function in signatures.items()},
        "custom_ops": list(built.custom_ops),
        "index": {
            "kind": index,
            "is_exact": built.is_exact,
            "settings": built.settings,
            "recall_asked": recall,
            "recall@10": measure_recall(built, held_out),
            "recall_queries": len(held_out),
        },
        "filters": list(filters),
        "k": k,
        "max_k": max_k,
        "repeats": repeats,
        "num_items": len(run.vocabulary),
        "num_added_items": 0 if add_items is None else len(add_items),
        "unknown_values": unknown,
        "item_features": [] if new_items is None else [describe_feature(feature) for feature in features],
        **describe_inputs(serving.answers.inputs),
        "removed_items": list(remove_items),
        "max_length": run.model.sequence_tower.max_length,
        "run": str(run.folder.resolve()),
        "data": run.settings.data_path,
        "config": None if run.config is None else run.config.to_dict(),
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
    """Write the next version of an export with items added or removed; everything else stays as in its newest version.

    >>> refresh("export", remove_items=["item-7"])  # doctest: +SKIP
    PosixPath('export/2')

    Args:
        folder: the export folder.
        add_items, remove_items: see `change_catalogue`.
        run: the run that the export came from, where it has moved. Default: where it lay.
    Returns:
        Path of the version folder.
    Raises:
        ValueError: the folder is no export, its run is gone, or as for `change_catalogue`.
        NewerFormatError: a newer tfrec wrote the export.
    """
    newest = latest_version(folder)
    manifest = json.loads((newest / MANIFEST).read_text(encoding="utf-8"))
    check_format(newest, manifest, FORMAT)
    if run is None and not Path(manifest["run"]).is_dir():
        raise ValueError(
            f"The run of the export is no longer at `{manifest['run']}`: pass where it lies now, with --run."
        )
    before = newest / "assets.extra" / ADDED
    table, gone = add_items, set(remove_items)
    if before.is_file():
        earlier = pyarrow.parquet.read_table(before)
        ids = earlier["item_id"].to_pylist()
        earlier = earlier.filter(pa.array([i not in gone for i in ids], pa.bool_()))
        gone -= set(ids)  # what was added and is removed again was never there
        table = earlier if add_items is None else with_rows(earlier, add_items)
    return export(
        manifest["run"] if run is None else run,
        newest.parent,
        index=manifest["index"]["kind"],
        k=manifest["k"],
        storage=manifest["index"]["settings"]["storage"],
        recall=manifest["index"]["recall_asked"],
        filters=manifest["filters"],
        max_k=manifest.get("max_k"),
        repeats=manifest.get("repeats", "exclude"),
        add_items=table,
        remove_items=[*manifest["removed_items"], *sorted(gone)],
        after=newest,
    )


def describe_signature(function) -> dict[str, dict[str, list]]:
    """`{"inputs": {name: [dtype, shape]}, "outputs": ...}` of a signature."""
    describe = lambda specs: {name: [spec.dtype.name, spec.shape.as_list()] for name, spec in sorted(specs.items())}  # noqa: E731
    inputs = {spec.name: spec for spec in function.structured_input_signature[0] if isinstance(spec, tf.TensorSpec)}
    return {"inputs": describe(inputs), "outputs": describe(function.structured_outputs)}


def describe_feature(feature: Feature) -> dict[str, Any]:
    """What a client needs to know of a feature: its column, its input, its kind and its values."""
    about = {"column": feature.name, "input": input_spec(feature).name, "kind": feature.kind}
    return about | ({"values": list(feature.values)} if feature.values else {})


def latest_version(folder: str | os.PathLike) -> Path:
    """The newest version folder of an export, or `folder` itself where it is one.

    Raises:
        ValueError: it is neither.
    """
    folder = Path(folder)
    if (folder / "saved_model.pb").is_file():
        return folder
    versions = [p for p in folder.iterdir() if p.name.isdecimal()] if folder.is_dir() else []
    if not versions:
        raise ValueError(
            f"`{folder}` is not an export: it has no version folder. Make one with `tfrec export RUN --out {folder}`."
        )
    return max(versions, key=lambda p: int(p.name))
