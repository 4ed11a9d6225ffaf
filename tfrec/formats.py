"""The one check of the format of a stored file.

Prepared data, a run, the manifest of an export and the sidecar of a LiteRT file each hold `format_version` and `tfrec_version`. A
file without a version is of format 1. An older format is read: a field that is missing has the default of its version.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tfrec.exceptions import NewerFormatError


def check_format(path: str | os.PathLike, manifest: Mapping[str, Any], newest: int) -> int:
    """The format version of a stored file, which this tfrec can read.

    >>> check_format("run", {}, newest=2)
    1
    >>> check_format("run", {"format_version": 3, "tfrec_version": "9.0"}, newest=2)
    Traceback (most recent call last):
    tfrec.exceptions.NewerFormatError: `run` was written by tfrec 9.0 in format 3; this tfrec reads up to 2. Upgrade tfrec.

    Args:
        path: how the error names the file.
        manifest: its `format_version` and `tfrec_version`; a missing version means 1.
        newest: int, the newest format that is known.
    Raises:
        NewerFormatError: a newer tfrec wrote the file.
    """
    version = manifest.get("format_version", 1)
    if version > newest:
        raise NewerFormatError(
            f"`{path}` was written by tfrec {manifest.get('tfrec_version', '?')} in format {version}; this tfrec reads up to "
            f"{newest}. Upgrade tfrec."
        )
    return version
