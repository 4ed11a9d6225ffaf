"""Serve a SavedModel as TensorFlow Serving does, and query one. Knows nothing of tfrec: the SavedModel is the contract."""

from tfrec_serving.client import AsyncClient, Client, Recommendation, ServingError

__all__ = ["AsyncClient", "Client", "Recommendation", "ServingError"]
