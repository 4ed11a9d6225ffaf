"""Items that are seen near each other start near each other."""

import numpy as np
import pytest

from tfrec.models.cooccurrence import cooccurrence_vectors


def histories(num_users, seed=0):
    """Of 40 items, in four groups of ten; a user stays in one."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 4, num_users)
    return (2 + 10 * group[:, None] + rng.integers(0, 10, (num_users, 8))).reshape(-1), 8 * np.arange(num_users + 1)


def test_items_of_a_group_point_the_same_way_and_others_do_not():
    vectors = cooccurrence_vectors(*histories(500), num_items=40, width=4)
    cosines = (vectors @ vectors.T) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors, axis=1)[:, None]
    same = np.equal.outer(np.arange(40) // 10, np.arange(40) // 10)
    assert cosines[same].min() > 0.8
    assert np.abs(cosines[~same]).max() < 0.2
    assert np.linalg.norm(vectors, axis=1).mean() == pytest.approx(1, abs=1e-5)


def test_histories_do_not_run_into_each_other():
    """Every user has one item: none has a neighbour, though events lie side by side."""
    assert not cooccurrence_vectors(np.arange(2, 8), np.arange(7), num_items=6, width=5).any()


@pytest.mark.parametrize(("items", "offsets"), [([2, 3], [0, 1, 2]), ([2], [0, 1]), ([2, 2, 2], [0, 3])])
def test_items_without_neighbours_get_zeros_and_few_items_are_no_error(items, offsets):
    vectors = cooccurrence_vectors(np.array(items), np.array(offsets), num_items=3, width=16)
    assert vectors.shape == (3, 16)
    assert np.isfinite(vectors).all()
    assert not vectors[2].any()


@pytest.mark.parametrize("seed", range(30))
def test_a_log_of_isolated_pairs_is_no_error(seed):
    """Its singular values coincide: ARPACK gives up on a sixth of these when it starts from a vector of ones."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 9, 56)
    items = [2 + 2 * rng.integers(0, 41) + np.arange(length) % 2 for length in lengths]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    assert np.isfinite(cooccurrence_vectors(np.concatenate(items), offsets, num_items=82, width=16)).all()
