import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tfrec.data.datasets.download import UnavailableError
from tfrec.data.datasets.movielens import movielens_100k

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path):
    """From the first cell to the last; one epoch, and a generated log where MovieLens cannot be had."""
    try:
        movielens_100k()
        replace = {}
    except UnavailableError:
        replace = {"movielens-100k": "synthetic"}
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for old, new in (replace | {"epochs=60": "epochs=1"}).items():
            cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": os.fspath(path.parent)}}).execute()
    outputs = "".join(str(cell.get("outputs", "")) for cell in notebook.cells)
    assert "same items 100%" in outputs
    assert not any(cell.get("outputs") for cell in nbformat.read(path, as_version=4).cells), (
        "commit notebooks without outputs"
    )
