"""Find the files of a named data set: `$TFREC_DATA_DIR`, then the cache, then its publisher."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import wrap_file

from tfrec.exceptions import UnavailableError
from tfrec.progress import console


@dataclass(frozen=True)
class Source:
    """Where a publisher keeps a file: a zip archive, or a plain file.

    Attributes:
        url: the address.
        md5: checksum of what the address returns.
        members: the files to take out of the archive; empty when the file is no archive.
    """

    url: str
    md5: str
    members: Sequence[str] = ()


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/tfrec`, or `~/.cache/tfrec`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tfrec"


def find(folder: str, layouts: Sequence[Sequence[str]], source: Source) -> Path:
    """The folder that holds all files of one of `layouts`.

    Looks for `$TFREC_DATA_DIR/folder`, then for `folder` in the cache, then downloads `source` into the cache.

    Raises:
        UnavailableError: none of the three has it; the message says where it looked and what to do.
        ValueError: what was downloaded does not have the expected checksum.
    """
    given = os.environ.get("TFREC_DATA_DIR")
    places = [Path(root) / folder for root in (given, cache_folder()) if root]
    for place in places:
        if any(all((place / file).is_file() for file in files) for files in layouts):
            return place
    try:
        return download(source, cache_folder() / folder)
    except OSError as error:
        looked = " and ".join(f"`{place}`" for place in places)
        raise UnavailableError(
            f"{folder}: no {', '.join(layouts[0])} in {looked}, and {source.url} cannot be reached "
            f"({error}). Put the files there, or set TFREC_DATA_DIR."
        ) from error


def download(source: Source, folder: Path) -> Path:
    """Download, check and unpack `source` into `folder`, which appears whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        archive = Path(aside, Path(source.url).name)
        with urllib.request.urlopen(source.url, timeout=30) as response, archive.open("wb") as file:
            size = int(response.headers.get("Content-Length") or 0)
            if console.is_terminal and size:
                with wrap_file(response, size, description=f"Downloading {archive.name}", console=console) as shown:
                    shutil.copyfileobj(shown, file)
            else:
                shutil.copyfileobj(response, file)
        with archive.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != source.md5:
            raise ValueError(f"{source.url} was downloaded but its MD5 is {found}, not {source.md5}. Nothing was kept.")
        unpacked = Path(aside, "unpacked")
        unpacked.mkdir()
        if source.members:
            with zipfile.ZipFile(archive) as zipped:
                for member in source.members:
                    (unpacked / Path(member).name).write_bytes(zipped.read(member))
        else:
            archive.rename(unpacked / archive.name)
        shutil.rmtree(folder, ignore_errors=True)
        unpacked.rename(folder)
    return folder
