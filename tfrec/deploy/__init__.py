"""From a run to what answers requests: SavedModel, LiteRT, new items."""
