"""Item vectors as files of TensorBoard's embedding projector."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np

from tfrec.files import scratch
from tfrec.training.run import Run

PLAIN = str.maketrans("\t\n\r", "   ")
"""A tab and a line break would end a field or a row of the metadata."""


def write_projector(run: Run | str | os.PathLike, out: str | os.PathLike) -> Path:
    """Write the item vectors with the properties of the items; `tensorboard --logdir OUT` shows them under "Projector".

    >>> write_projector("run", "projector")  # doctest: +SKIP
    PosixPath('projector')

    Args:
        run: `Run` or its folder.
        out: the folder to write; it must not exist.
    Raises:
        FileExistsError: `out` exists.
    """
    run, out = run if isinstance(run, Run) else Run.open(run), Path(out)
    if out.exists():
        raise FileExistsError(f"`{out}` exists. Choose another folder.")
    aside = scratch(out)
    aside.mkdir(parents=True)
    try:
        np.savetxt(aside / "vectors.tsv", np.asarray(run.model.item_tower.catalogue()), "%.6g", "\t")
        columns = run.items.to_pydict()
        with (aside / "metadata.tsv").open("w", encoding="utf-8") as file:
            for row in [tuple(columns), *zip(*columns.values(), strict=True)]:
                print(*("" if value is None else str(value).translate(PLAIN) for value in row), sep="\t", file=file)
        config = (
            'embeddings {\n  tensor_name: "items"\n  tensor_path: "vectors.tsv"\n  metadata_path: "metadata.tsv"\n}\n'
        )
        (aside / "projector_config.pbtxt").write_text(config, encoding="utf-8")
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return out
