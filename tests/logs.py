"""Small logs: how tests write them, and read what was prepared."""

from __future__ import annotations

from pathlib import Path

from tfrec.data.prepared import PreparedData


def write(path: Path, text: str | bytes) -> Path:
    """Write a file, in a new folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def histories(data: PreparedData | Path) -> dict[str, list[str]]:
    """Item ids by user id, of prepared data or a prepared folder."""
    data = data if isinstance(data, PreparedData) else PreparedData.open(data)
    return {user: data.vocabulary.decode(data.history(u)) for u, user in enumerate(data.users["user_id"].to_pylist())}
