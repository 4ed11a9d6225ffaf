"""Serve a SavedModel as TensorFlow Serving does, and query one. Knows nothing of tfrec: the SavedModel is the contract."""

from tfrec_serving.client import Client, Recommendation, ServingError

__all__ = ["Client", "Recommendation", "ServingError"]
