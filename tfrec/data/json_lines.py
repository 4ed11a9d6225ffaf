"""JSON Lines, one array of objects, and the Python literals that older public logs are written in."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tfrec.data.columns import EVENT
from tfrec.data.rows import Part
from tfrec.data.sources import Source
from tfrec.data.vocabulary import id_text

CHUNK_ROWS = 200_000


def read_lines(source: Source) -> Iterator[tuple[int, str | None]]:
    """Numbered lines without their ends; None for one that is not UTF-8.

    Raises:
        ValueError: the file cannot be decompressed.
    """
    number, rest = 0, b""
    with source.open() as stream:
        while read := stream.read(1 << 20):
            *lines, rest = (rest + read).split(b"\n")
            for raw in lines:
                number += 1
                yield number, _decode(raw, number)
        # a file without a newline has lines that end in a return alone, or one line
        for raw in rest.rstrip(b"\r").split(b"\r") if rest and not number else [rest] if rest else []:
            number += 1
            yield number, _decode(raw, number)


def _decode(raw: bytes, number: int) -> str | None:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r")
    except UnicodeDecodeError:
        return None


def read_objects(source: Source) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """`(line, object)`, or `(line, reason)` of what is none. In an array, the number of the object stands for the line."""
    is_first = True
    for number, line in read_lines(source):
        was_first, is_first = is_first, is_first and line is not None and not line.strip()
        if line is None:
            yield number, "broken UTF-8"
        elif line.lstrip().startswith("[") and was_first and (objects := _array(source)) is not None:
            yield from enumerate(objects, 1)
            return
        elif line.strip():
            yield number, _parse(line)


def _array(source: Source) -> list[Any] | None:
    """The objects of a file that is one array; None where it is not."""
    with source.open() as stream:
        try:
            content = json.loads(stream.read().decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return None
    is_array = isinstance(content, list) and all(isinstance(o, dict) for o in content)
    return content if is_array else None


def _parse(line: str) -> dict[str, Any] | str:
    try:
        content = json.loads(line)
    except ValueError as error:  # also of a number with too many digits
        reason = (
            f"not JSON: {error.msg} (column {error.colno})"
            if isinstance(error, json.JSONDecodeError)
            else f"not JSON: {error}"
        )
        try:  # Steam's and Amazon's older files: {u'user': u'...'}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntaxWarning)  # of a backslash in a text
                content = ast.literal_eval(line.strip()) if line.lstrip().startswith("{") else None
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return reason
        if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
            return reason
    except RecursionError:
        return "not JSON: nested too deep"
    return content if isinstance(content, dict) else "not a JSON object"


def any_text(value: Any) -> str | None:
    """A value as text: ids as `id_text` writes them, what is neither text nor a number as JSON."""
    try:
        return id_text(value)
    except ValueError:
        return json.dumps(value, default=str)


def read_parts(source: Source, file: int, columns: Mapping[str, str]) -> Iterator[Part]:
    """The rows of a file; a list of items is a session."""
    values: dict[str, list] = {role: [] for role in columns}
    lines: list[int] = []
    bad: list[tuple[int, str]] = []

    def part() -> Part:
        item = values.get("item", [])  # empty where folders name the item
        is_session = any(isinstance(v, list) for column in values.values() for v in column)
        arrays = {role: pa.array(column, pa.string()) for role, column in values.items() if not is_session}
        if is_session:
            lists = [i if isinstance(i, list) else [i] for i in item]
            for role, column in values.items():
                if role == "item":
                    arrays[role] = pa.array(lists, pa.list_(pa.string()))
                elif any(isinstance(v, list) for v in column):
                    full = [v if isinstance(v, list) else [v] * len(i) for v, i in zip(column, lists, strict=True)]
                    arrays[role] = pa.array(full, pa.list_(pa.string()))
                else:
                    arrays[role] = pa.array(column, pa.string())
        return Part(file, arrays, np.array(lines, np.int64), list(bad))

    for line, content in read_objects(source):
        if isinstance(content, str):
            bad.append((line, content))
        else:
            try:
                found = {role: _value(content.get(columns[role]), role) for role in values}
            except ValueError as error:
                bad.append((line, str(error)))
            else:
                lines.append(line)
                for role, value in found.items():
                    values[role].append(value)
        if len(lines) + len(bad) >= CHUNK_ROWS:
            yield part()
            for column in (*values.values(), lines, bad):
                column.clear()
    yield part()


def _value(value: Any, role: str) -> str | list | None:
    """A value as text; of a session, a list of texts."""
    as_text = _event_text if role.startswith(EVENT) else id_text
    try:
        if isinstance(value, list | tuple) and role != "user":
            return [as_text(v) for v in value]  # type: ignore[misc]
        return as_text(value)
    except ValueError as error:
        if role.startswith(EVENT):
            raise ValueError(f"{role.removeprefix(EVENT)} is {error}") from None
        what = "the time" if role == "time" else "the tie-break" if role == "tie" else f"the {role} id"
        text = str(error)
        raise ValueError(text if text.startswith("broken") else f"{what} is {text}") from None


def _event_text(value: Any) -> str | None:
    """The value of a column of events as text."""
    return str(value).lower() if isinstance(value, bool) else id_text(value)


def column_names(source: Source, sample_rows: int) -> tuple[list[str], Sequence[dict[str, Any]]]:
    """The names of all objects of a file, in order of first appearance, and the first objects."""
    names: dict[str, None] = {}
    sample: list[dict[str, Any]] = []
    for _, content in read_objects(source):
        if isinstance(content, dict):
            names.update(dict.fromkeys(content))
            if len(sample) < sample_rows:
                sample.append(content)
    return list(names), sample
