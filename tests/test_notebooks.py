"""The notebooks run from the first cell to the last."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tfrec.data.datasets.movielens import movielens_100k
from tfrec.exceptions import UnavailableError

FOLDER = Path(__file__).parent.parent / "notebooks"
EXPECTED = {
    "movielens": "same items 100%",
    "new_items": "'genres': ['string', [None, None]]",
    "own_frame_and_tower": "Recommendation(item_id='product-6'",
}
"""A text of the outputs of each notebook."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs(path):
    """Few epochs, and a generated log where MovieLens cannot be had."""
    try:
        movielens_100k()
        replace = {}
    except UnavailableError:
        replace = {"movielens-100k": "synthetic"}
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "commit notebooks without outputs"
        for old, new in (replace | {"epochs=60": "epochs=1"}).items():
            cell.source = cell.source.replace(old, new)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": os.fspath(path.parent)}}).execute()
    assert EXPECTED[path.stem] in "".join(str(cell.get("outputs", "")) for cell in notebook.cells)


def test_from_a_frame_to_a_served_recommendation_takes_15_lines():
    notebook = nbformat.read(FOLDER / "own_frame_and_tower.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if cell.cell_type == "code" and "client.recommend" in cell.source]
    assert len([line for line in cell.source.splitlines() if line]) <= 15
