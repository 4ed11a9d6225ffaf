"""Text as vectors, without a download: hashed word n-grams, weighed by TF-IDF, reduced by a singular value decomposition.

Source: latent semantic analysis, Deerwester et al. 1990, on hashed features, Weinberger et al. 2009. Differs from the sources: a
text is the L2-normalised sum of the vectors of its n-grams, so that the reduction is one gather.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

if TYPE_CHECKING:
    import tensorflow as tf

BUCKETS = 1 << 14
"""N-grams share so many rows."""
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]"
"""Letters of scripts that write no blanks between words."""
MAX_WORDS = 64
"""Words of a text that are read: the first."""
WIDTHS = (64, 128)
"""Width of the vectors for up to and above `LARGE` texts."""
LARGE = 20_000
FITTED = 200_000
"""Texts that are learned from at most, evenly taken."""


def ngrams(texts: tf.Tensor) -> tf.RaggedTensor:
    """The hashed words and pairs of words of texts: int64 in [0, BUCKETS), a ragged row for each text.

    Words are runs of letters and digits, in lower case; a letter of a script without blanks is a word.

    Args:
        texts: string tensor, shape `(rows,)`.
    """
    import tensorflow as tf

    words = tf.strings.lower(texts, encoding="utf-8")
    words = tf.strings.regex_replace(words, r"[^\pL\pM\pN]+", " ")
    words = tf.strings.regex_replace(words, UNSPACED, r" \0 ")
    words = tf.strings.split(words)[:, :MAX_WORDS]
    return tf.strings.to_hash_bucket_fast(tf.strings.ngrams(words, (1, 2), separator=" "), BUCKETS)


def fit_text(texts: np.ndarray) -> np.ndarray:
    """Learn the vectors of n-grams from texts.

    Args:
        texts: array of str, shape `(rows,)`.
    Returns:
        Float32 array, shape `(BUCKETS, width)`: the vector of each n-gram, its weight included; zeros for one in no text.
    """
    import tensorflow as tf

    width = WIDTHS[len(texts) > LARGE]
    texts = texts[:: -(-len(texts) // FITTED) or 1]
    found = ngrams(tf.constant(texts, tf.string, (len(texts),)))
    column, row = found.values.numpy(), found.value_rowids().numpy()
    counts = scipy.sparse.csr_matrix((np.ones(len(row)), (row, column)), (len(texts), BUCKETS))
    in_texts = np.bincount(counts.tocoo().col, minlength=BUCKETS)  # n-grams of one text tell nothing
    idf = np.where(in_texts > 1, np.log((1 + len(texts)) / (1 + in_texts)) + 1, 0)
    weighted = counts @ scipy.sparse.diags(idf)
    norm = scipy.sparse.linalg.norm(weighted, axis=1)
    weighted = scipy.sparse.diags(1 / np.maximum(norm, 1e-12)) @ weighted
    table = np.zeros((BUCKETS, width), np.float32)
    rank = min(width, len(texts) - 1, int((in_texts > 1).sum()) - 1)
    if rank > 0:
        start = np.random.default_rng(0).random(min(weighted.shape))
        _, _values, right = scipy.sparse.linalg.svds(weighted, k=rank, tol=0.01, v0=start)
        table[:, :rank] = idf[:, None] * right.T
    return table


def embed_text(texts: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
    """The vectors of texts: float32, shape `(rows, width)`; zeros for a text without a known n-gram."""
    import tensorflow as tf

    found = ngrams(texts)
    total = tf.math.unsorted_segment_sum(tf.gather(table, found.values), found.value_rowids(), found.nrows())
    return tf.math.l2_normalize(total, axis=1, epsilon=1e-12)
