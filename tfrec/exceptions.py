"""What tfrec raises beside `ValueError`, `TypeError` and `OSError`."""


class DivergedError(Exception):
    """The loss became NaN or infinite."""
