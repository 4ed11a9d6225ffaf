"""Serve a SavedModel as TensorFlow Serving does, and query one. Knows nothing of tfrec: the SavedModel is the contract."""

from tfrec_serving.client import AsyncClient, Client
from tfrec_serving.errors import ServingError
from tfrec_serving.questions import Recommendation

__all__ = ["AsyncClient", "Client", "Recommendation", "ServingError"]
