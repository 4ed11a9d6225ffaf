import numpy as np
import pytest

from tfrec.index import build_index, recall
from tfrec.index.exact import ExactIndex
from tfrec.index.scann import ScannIndex


def vectors(num_items, width=64, seed=0):
    """Points around 20 centres, the same for every seed: items and queries are alike."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(20, width))
    return (centres[rng.integers(20, size=num_items)] + 0.7 * rng.normal(size=(num_items, width))).astype(np.float32)


@pytest.mark.parametrize("kind", ["exact", "scann"])
@pytest.mark.parametrize("num_items", [1, 7, 1500])
def test_scores_are_exact_and_sorted_and_k_is_bounded(kind, num_items):
    items, queries = vectors(num_items), vectors(5, seed=1)
    index = build_index(kind, items)
    for k in (1, 3, num_items + 4):
        scores, found = (np.array(part) for part in index.query(queries, k))
        assert scores.shape == found.shape == (5, min(k, num_items))
        assert scores.dtype == np.float32
        assert found.dtype == np.int32
        np.testing.assert_allclose(scores, np.take_along_axis(queries @ items.T, found, 1), rtol=1e-4, atol=1e-4)
        assert (np.diff(scores, axis=1) <= 1e-5).all()
        assert all(len(set(row)) == len(row) for row in found)


def test_exact_is_brute_force():
    items, queries = vectors(300), vectors(4, seed=1)
    index = ExactIndex(items)
    np.testing.assert_array_equal(np.array(index.query(queries, 9)[1]), np.argsort(-(queries @ items.T), axis=1)[:, :9])
    assert index.is_exact
    assert not index.custom_ops
    assert recall(index, queries) == 1.0


@pytest.mark.parametrize(("num_items", "floor"), [(500, 1.0), (3000, 0.99), (20_000, 0.99)])
def test_scann_finds_what_exact_finds(num_items, floor):
    index = ScannIndex(vectors(num_items))
    assert recall(index, vectors(200, seed=1)) >= floor
    assert index.custom_ops == ("Scann",)


def test_scann_with_a_tree_still_gives_k_results(monkeypatch):
    """A query lands in few leaves; when they hold fewer than k items, all of them are ranked."""
    monkeypatch.setattr("tfrec.index.scann.FLAT_ITEMS", 1000)
    items, queries = vectors(2000), vectors(50, seed=1)
    index = ScannIndex(items)
    assert index.settings["leaves"] == 44
    assert 0.5 < recall(index, queries) < 1.0  # a tree is approximate: were it 1, this test would not have one
    scores, found = (np.array(part) for part in index.query(queries, 1900))
    assert np.isfinite(scores).all()
    assert all(len(set(row)) == 1900 for row in found)


def test_equal_and_zero_vectors_are_items_like_others():
    items = np.zeros((1200, 64), np.float32)
    items[5] = 1
    for kind in ("exact", "scann"):
        _, found = build_index(kind, items).query(np.ones((1, 64), np.float32), 20)
        assert np.array(found)[0, 0] == 5
        assert len(set(np.array(found)[0])) == 20


def test_a_vector_that_is_not_finite_is_named():
    items = vectors(10)
    items[7, 3] = np.nan
    with pytest.raises(ValueError, match="Item 7 has a vector with NaN or infinity"):
        build_index("exact", items)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="`index` must be one of exact, scann. Received: 'faiss'"):
        build_index("faiss", vectors(3))
