"""A baseline for new items: those whose features are most like those of the history."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

DENSE = 0.05
"""Share of values that are not 0 above which products of whole matrices are quicker."""


class ContentKNN:
    """Ranks items by the cosine of their features with those of the history's items, summed over the newest of these.

    Values of categories count by their inverse frequency (TF-IDF); each feature counts as much as each other.
    Source: content-based filtering, Pazzani & Billsus 2007. Differs from the source: none known.

    Args:
        features: encoded features by name, see `tfrec.data.features`; a row for each item of the catalogue.
        num_newest: int > 0, items of a history that count. Default: 1, which was best on Amazon Beauty.
    """

    def __init__(self, features: Mapping[str, np.ndarray], num_newest: int = 1) -> None:
        self.num_newest = num_newest
        parts = [_normalised(_matrix(values)) for values in features.values()]
        vectors = _normalised(scipy.sparse.hstack(parts, format="csr"))
        is_dense = vectors.nnz > DENSE * vectors.shape[0] * vectors.shape[1]
        self._vectors = vectors.toarray() if is_dense else vectors

    def scores(self, item: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Float32 `(histories, num_items)`, given histories one after the other, items numbered from 0."""
        newest = [item[max(a, b - self.num_newest) : b] for a, b in itertools.pairwise(offsets)]
        row = np.repeat(np.arange(len(newest)), [len(own) for own in newest])
        shape = (len(newest), self._vectors.shape[0])
        own = scipy.sparse.csr_matrix((np.ones(len(row), np.float32), (row, np.concatenate(newest))), shape)
        scores = own @ self._vectors @ self._vectors.T
        return scores if isinstance(scores, np.ndarray) else scores.toarray()


def _matrix(values: np.ndarray) -> scipy.sparse.csr_matrix:
    """A feature as rows of numbers: TF-IDF of categories, numbers standardised, vectors as they are."""
    if values.dtype.kind == "i":
        values = values.reshape(len(values), -1)
        row, place = np.nonzero(values > 1)
        column = values[row, place]
        matrix = scipy.sparse.csr_matrix(
            (np.ones(len(row), np.float32), (row, column)), (len(values), values.max() + 1)
        )
        number = np.asarray((matrix > 0).sum(axis=0)).ravel()
        return (matrix @ scipy.sparse.diags(np.log(len(values) / np.maximum(number, 1)))).tocsr()
    if values.ndim == 1:
        spread = np.nanstd(values) or 1.0
        values = np.stack(
            [np.where(np.isnan(values), 0, (values - np.nanmean(values)) / spread), np.ones(len(values))], 1
        )
    return scipy.sparse.csr_matrix(values.astype(np.float32))


def _normalised(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    norm = scipy.sparse.linalg.norm(matrix, axis=1)
    return (scipy.sparse.diags(1 / np.maximum(norm, 1e-12)) @ matrix).tocsr().astype(np.float32)
