"""Top-k retrieval inside a SavedModel: the kinds of index behind one interface, filters, and the rules of an answer."""

from tfrec.index.building import KINDS, build_index, estimate_bytes, exact_top, recall
from tfrec.index.exact import ExactIndex
from tfrec.index.partitioned import STORAGES, PartitionedIndex

__all__ = [
    "KINDS",
    "STORAGES",
    "ExactIndex",
    "PartitionedIndex",
    "build_index",
    "estimate_bytes",
    "exact_top",
    "recall",
]
