"""The log: read and checked, stored once, split, and made into batches."""
