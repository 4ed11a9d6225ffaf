"""The exceptions of tfrec, beside `ValueError` and `TypeError` for wrong arguments and `OSError` for files.

TfrecError
├── DivergedError                    training ended because the loss became NaN or infinite
├── UnavailableError                 a public data set is not on this machine and cannot be downloaded
├── DataMismatchError, ValueError    the data is not what a run was trained on
└── NewerFormatError, ValueError     a newer tfrec wrote the file

`tfrec_serving.ServingError`, of the client, stands alone: the client does not need tfrec.
"""


class TfrecError(Exception):
    """The base of the exceptions of tfrec.

    >>> issubclass(DivergedError, TfrecError)
    True
    """


class DivergedError(TfrecError):
    """The loss became NaN or infinite."""


class UnavailableError(TfrecError):
    """A public data set is not on this machine and its publisher cannot be reached."""


class DataMismatchError(TfrecError, ValueError):
    """The data is not what a run was trained on."""


class NewerFormatError(TfrecError, ValueError):
    """A newer tfrec wrote the file, in a format that this tfrec does not know."""
