"""Item vectors from counts alone, from which the item table starts."""

from __future__ import annotations

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from tfrec.data.vocabulary import FIRST_ITEM_INDEX

WINDOW = 4
"""Items at most this many steps apart count as seen together, in proportion to 1 / steps."""


def cooccurrence_vectors(item_index: np.ndarray, offsets: np.ndarray, num_items: int, width: int) -> np.ndarray:
    """Vectors that point the same way for items with the same neighbours in histories.

    The positive pointwise mutual information of items near each other, reduced by a singular value decomposition.
    Source: Levy, Goldberg & Dagan 2015, "Improving Distributional Similarity with Lessons Learned from Word Embeddings":
    SVD with context distribution smoothing of .75 and eigenvalue weighting of .5. Differs from the source: items for words;
    singular values to a tenth, since training goes on from here: half of the time.

    Args:
        item_index: int array, shape `(events,)`, histories one after the other.
        offsets: int array, shape `(users + 1,)`, the first event of each history.
        num_items: int, size of the catalogue.
        width: int, width of the vectors.
    Returns:
        Float32 array, shape `(num_items, width)`, with a mean norm of 1; zeros for an item without a neighbour.
    """
    item = np.asarray(item_index, np.int64) - FIRST_ITEM_INDEX
    user = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    shape = (num_items, num_items)
    counts = scipy.sparse.csr_matrix(shape)
    for steps in range(1, WINDOW + 1):
        together = user[steps:] == user[:-steps]
        pairs = (item[:-steps][together], item[steps:][together])
        counts += scipy.sparse.csr_matrix((np.full(len(pairs[0]), 1 / steps), pairs), shape)
    counts = (counts + counts.T).tocoo()
    of_item = np.asarray(counts.sum(axis=1)).ravel()
    smoothed = of_item**0.75
    information = np.log(counts.data * smoothed.sum() / (of_item[counts.row] * smoothed[counts.col])).astype(np.float32)
    near = information > 0
    matrix = scipy.sparse.csr_matrix((information[near], (counts.row[near], counts.col[near])), shape)
    vectors = np.zeros((num_items, width), np.float32)
    rank = min(width, num_items - 1)
    if rank and matrix.nnz:
        # random: ARPACK breaks down on a start that some structure of the data annihilates
        start = np.random.default_rng(0).random(num_items, np.float32)
        left, values, _ = scipy.sparse.linalg.svds(matrix, k=rank, tol=0.1, v0=start)
        vectors[:, :rank] = left * np.sqrt(values)
        lengths = np.linalg.norm(vectors, axis=1)
        vectors *= 1 / lengths[lengths > 1e-6].mean()
    return vectors
