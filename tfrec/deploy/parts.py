"""A large table that is written in parts: a call that was killed goes on, and the file appears whole or not at all.

OUT.parts/call.json        the arguments of the call that writes the parts, and when it began
OUT.parts/000000.parquet   the first part, renamed when it is whole, 000001.parquet the second, and so on
OUT.parts/lock             held by the process that writes them
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tfrec.files import write_whole
from tfrec.formats import check_format
from tfrec.version import __version__

FORMAT = 1
CALL, LOCK = "call.json", "lock"
ENDINGS = (".parquet", ".csv")


class Parts:
    """The parts of a file that is being written; a context manager, since another process must not write them too.

    Args:
        out: Path of the file, `.parquet` or `.csv`.
        arguments: dict of what decides the contents of the parts, as JSON has it.
        restart: bool, drop the parts of an earlier call. Default: False.
    Raises:
        ValueError: another process writes the file, or the parts that are there were written with other arguments.
        NewerFormatError: a newer tfrec wrote them.
    """

    def __init__(self, out: Path, arguments: Mapping[str, Any], restart: bool = False) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if restart:
                for path in self.folder.iterdir():
                    if path.name != LOCK:
                        path.unlink()
            self.began: int = self._read_call(dict(arguments))["began"]
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"Another process writes `{out}`: wait until it ends.") from None
        except BaseException:
            self._lock.close()
            raise

    def _read_call(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The call whose parts are there, which must have the same arguments; without one, this call."""
        path = self.folder / CALL
        if not path.is_file():
            call = {"format_version": FORMAT, "tfrec_version": __version__, "began": int(time.time())}
            text = json.dumps(call | {"arguments": arguments}, indent=2)
            write_whole(path, lambda aside: aside.write_text(text, encoding="utf-8"))
        call = json.loads(path.read_text(encoding="utf-8"))
        check_format(path, call, FORMAT)
        before = call["arguments"]
        if others := [name for name, value in arguments.items() if before.get(name) != value]:
            raise ValueError(
                f"`{self.folder}` holds the parts of a call with other arguments: {', '.join(others)}. Pass what that call had to "
                f"go on, or `restart` (--restart) to begin again."
            )
        return call

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def path(self, number: int) -> Path:
        """Where a part lies."""
        return self.folder / f"{number:06}.parquet"

    def write(self, number: int, table: pa.Table) -> None:
        """Write a part, whole or not at all."""
        write_whole(self.path(number), lambda aside: pyarrow.parquet.write_table(table, aside))

    def join(self, count: int) -> int:
        """Write the file out of its first `count` parts, of which one is in memory at a time, and remove them; return its rows."""
        num_rows = 0

        def write(aside: Path) -> None:
            nonlocal num_rows
            schema = pyarrow.parquet.read_schema(self.path(0))
            to_parquet = self.out.suffix == ".parquet"
            with (
                pyarrow.parquet.ParquetWriter(aside, schema) if to_parquet else pa.csv.CSVWriter(aside, schema) as file
            ):
                for number in range(count):
                    part = pyarrow.parquet.read_table(self.path(number))
                    file.write_table(part)
                    num_rows += len(part)

        write_whole(self.out, write)
        shutil.rmtree(self.folder)
        return num_rows
