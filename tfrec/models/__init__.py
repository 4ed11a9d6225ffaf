"""The two towers, the losses between them, and the item table at scale."""
