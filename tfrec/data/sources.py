"""Finds the files of a log or of an item file: single files, folders of parts, globs and URIs, compressed or not."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "tsv",  # RecBole's atomic files
    ".item": "tsv",
    ".user": "tsv",
    ".parquet": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
"""Formats by the ending of a file. A `.json` file holds JSON Lines or one array; its reader sees which."""
COMPRESSED = (".gz", ".zst", ".bz2", ".lz4")
NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""How Hive and Spark name the folder of a partition whose column is null."""


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        name: str, the path or URI, as errors and `refused.csv` show it.
        format: str, `csv`, `tsv`, `parquet`, `jsonl` or `sequences`.
        path: str, the path within `filesystem`.
        partitions: columns that the folders' names hold, as in `day=2026-01-02/part-0.parquet`.
        encoding: str, the encoding of text. Default: UTF-8, or UTF-16 where the file begins with its byte order mark.
    """

    name: str
    format: str
    path: str
    filesystem: pa.fs.FileSystem = field(repr=False)
    partitions: Mapping[str, str | None] = field(default_factory=dict)
    encoding: str | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[pa.NativeFile]:
        """A stream of the decompressed bytes; other encodings come as UTF-8.

        Raises:
            ValueError: the file cannot be opened, read or decompressed.
        """
        with self.errors(), self._open() as stream:
            encoding = self.encoding or ("utf-16" if self._is_utf_16 else None)
            yield pa.transcoding_input_stream(stream, encoding, "utf-8") if encoding else stream

    def _open(self) -> pa.NativeFile:
        return self.filesystem.open_input_stream(self.path, compression="detect")

    @cached_property
    def _is_utf_16(self) -> bool:
        """Whether the file begins with a byte order mark of UTF-16; a file is opened several times and looked at once."""
        with self._open() as stream:
            return stream.read(2) in (b"\xff\xfe", b"\xfe\xff")

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Raises the errors of reading as a `ValueError` that names the file."""
        try:
            yield
        except (OSError, UnicodeError, pa.ArrowException) as error:
            raise ValueError(f"`{self.name}` cannot be read: {_sentence(error)}") from None


def find_sources(
    path: str | os.PathLike, format: str | None, otherwise: str | None = None, encoding: str | None = None
) -> list[Source]:
    """The files of a path, sorted: a file, a folder of parts, a glob, or a URI such as `s3://bucket/folder`.

    In a folder, names that start with `_` or `.` are skipped, as Spark's `_SUCCESS`, and empty parts.

    Args:
        path: where the files are.
        format: the format of each file. Default: told from its ending.
        otherwise: the format of files whose ending tells none. Default: such a file is an error.
        encoding: see `Source`.
    Raises:
        ValueError: there is no such file, it is empty, or its format is not known.
    """
    text = os.fspath(path)
    filesystem, place = _filesystem(text)
    is_local = isinstance(filesystem, pa.fs.LocalFileSystem)
    is_glob = glob.has_magic(place) and not (is_local and os.path.exists(place))
    try:
        root = _folder_before_pattern(place) if is_glob else place
        found = filesystem.get_file_info(root)
        if is_glob and is_local:
            matched = filesystem.get_file_info(glob.glob(place, recursive=True))
            files = [file for info in matched for file in _files(filesystem, info)]
        else:
            files = _files(filesystem, found)
        if not found.is_file:
            files = [f for f in files if _is_data(f.path, root)]
        if is_glob and not is_local:
            files = [f for f in files if _matches(PurePosixPath(f.path).parts, PurePosixPath(place).parts)]
        if is_local:  # a pattern may reach a file by several links
            shortest_last = sorted(files, key=lambda f: (len(f.path), f.path), reverse=True)
            files = list({os.path.realpath(f.path): f for f in shortest_last}.values())
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"`{text}` cannot be read: {_sentence(error)}") from None
    if not files:
        if found.type == pa.fs.FileType.Directory and not is_glob:
            raise ValueError(f"`{text}` is a folder without data files (names that start with `_` or `.` are skipped).")
        raise ValueError(f"`{text}` " + ("matches no file." if is_glob else "does not exist or is not a file."))
    for file in files:
        if not file.is_file:
            raise ValueError(f"`{file.path}` is a link to a file that does not exist.")
    is_single = found.is_file
    if not any(f.size for f in files):
        raise ValueError(f"`{text}` is empty. A log needs at least one row with a user and an item.")
    scheme = text[: text.index("://") + 3] if "://" in text else ""
    sources = []
    for file in sorted((f for f in files if f.size), key=lambda f: f.path):
        name = text if is_single else scheme + file.path
        kind = format or _format(file.path, name, otherwise)
        sources.append(Source(name, kind, file.path, filesystem, _partitions(file.path), encoding))
    return sources


def _filesystem(text: str) -> tuple[pa.fs.FileSystem, str]:
    """The file system of a path or URI, and the path within it."""
    if "://" not in text:
        return pa.fs.LocalFileSystem(), text
    try:
        if text.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in text:  # it tries for 15 minutes
            text += ("&" if "?" in text else "?") + "retry_limit_seconds=20"
        return pa.fs.FileSystem.from_uri(text)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(
            f"`{text}` cannot be read: {_sentence(error)} Paths, file://, s3:// and gs:// can; "
            "credentials come from the environment."
        ) from None


def _folder_before_pattern(place: str) -> str:
    """The part of a glob before its first wildcard.

    >>> [_folder_before_pattern(place) for place in ("log/*/a*.csv", "*.csv", "/d*/a.csv")]
    ['log', '.', '/']
    """
    return re.split(r"[*?\[]", place)[0].rpartition("/")[0] or ("/" if place.startswith("/") else ".")


def _sentence(error: Exception) -> str:
    return f"{str(error).splitlines()[0].rstrip('.')}."


def _files(filesystem: pa.fs.FileSystem, found: pa.fs.FileInfo) -> list[pa.fs.FileInfo]:
    """A file, or the files of a folder and of the folders in it, with links that lead nowhere."""
    if found.type != pa.fs.FileType.Directory:
        return [found] if found.is_file else []
    if isinstance(filesystem, pa.fs.LocalFileSystem):  # PyArrow passes over such links
        names: list[str] = []
        for folder, folders, files in os.walk(found.path, followlinks=True):
            own = os.path.join(os.path.realpath(folder), "")  # a link to a folder above would never end
            folders[:] = [f for f in folders if not own.startswith(os.path.join(os.path.realpath(f"{folder}/{f}"), ""))]
            names += [os.path.join(folder, name) for name in files]
        return filesystem.get_file_info(names)
    below = filesystem.get_file_info(pa.fs.FileSelector(found.path, recursive=True))
    return [file for file in below if file.type != pa.fs.FileType.Directory]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path, or a folder above it, matches a glob as a shell reads it: `*` stays within a folder, `**` does not.

    >>> _matches(("log", "a", "b.csv"), ("log", "*.csv")), _matches(("log", "a", "b.csv"), ("log", "**", "*.csv"))
    (False, True)
    """
    if not pattern or not parts:
        return not pattern
    if pattern[0] == "**":
        return any(_matches(parts[first:], pattern[1:]) for first in range(len(parts) + 1))
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _is_data(path: str, root: str) -> bool:
    below = PurePosixPath(path[len(root) :] if path.startswith(root) else path).parts
    return not any(part[0] in "_." and "=" not in part for part in below) and not path.endswith(".crc")


def _partitions(path: str) -> dict[str, str | None]:
    """The partition columns in a path.

    >>> _partitions("log/day=2026-01-02/country=de/part-0.csv")
    {'day': '2026-01-02', 'country': 'de'}
    """
    pairs = (part.partition("=") for part in PurePosixPath(path).parts[:-1] if "=" in part)
    return {key: None if value == NO_PARTITION else unquote(value) for key, _, value in pairs}


def _format(place: str, name: str, otherwise: str | None) -> str:
    """The format of a file by its ending, before the ending of its compression."""
    path = PurePosixPath(place.lower())
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
    if path.suffix not in FORMATS and otherwise is None:
        raise ValueError(
            f"`{name}`: no format is known for the ending {path.suffix!r}. "
            "Pass --format, one of csv, tsv, parquet, jsonl, sequences."
        )
    return FORMATS.get(path.suffix, otherwise)  # type: ignore[return-value]
