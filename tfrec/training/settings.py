"""The part of a run folder that needs no model: its settings, where the data lay, and whether given data is that."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tfrec.data.cold_items import ColdItems
from tfrec.data.prepared import PreparedData
from tfrec.data.splits import Split
from tfrec.data.time_split import make_split
from tfrec.data.vocabulary import Vocabulary
from tfrec.exceptions import DataMismatchError
from tfrec.formats import check_format
from tfrec.training.config import Config

FORMAT = 3
ABOUT, CONFIG = "run.json", "config.json"
IDS_ALONE = {"item_features": "none", "id_dropout_rate": 0.0, "feature_dropout_rate": 0.0}
"""What a config means that is older than features."""


@dataclass(frozen=True)
class RunSettings:
    """The part of a run folder that needs no model.

    Attributes:
        folder: Path, the run folder.
        format_version: int.
        config: `Config`, None for a model that was fitted by hand.
        data_path: str, where the data lay; None for data in memory.
        fingerprint: str, of the data; None for a run of format 1.
        length_quantiles: dict, of the number of events of a user.
        own: list of str, which of `model` and `loss` the user gave to `train`.
    """

    folder: Path
    format_version: int
    config: Config | None
    data_path: str | None
    fingerprint: str | None = None
    length_quantiles: dict[str, int] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The catalogue."""
        return Vocabulary.load(self.folder)

    def open_data(self, data: PreparedData | str | os.PathLike | None = None) -> PreparedData:
        """The prepared data that the run was trained on; see `Run.data`."""
        found = self.find_data(data)
        return self.check_data(found if self.config is None else without_cold(found, self.config))

    def find_data(self, data: PreparedData | str | os.PathLike | None = None) -> PreparedData:
        """The given data, or that where the run's lay, with the items that training held out."""
        if data is None and self.data_path is None:
            raise ValueError(
                "The run was trained on data in memory: pass the data (in the command line, --data FOLDER)."
            )
        if data is None and not Path(str(self.data_path)).is_dir():
            raise ValueError(
                f"The data of the run is no longer at `{self.data_path}`: pass where it lies now, with --data."
            )
        return data if isinstance(data, PreparedData) else PreparedData.open(data or str(self.data_path))

    def check_data(self, found: PreparedData) -> PreparedData:
        """Data that is what the run was trained on, or an error."""
        is_same = self.fingerprint in (None, found.fingerprint)
        if not is_same or found.vocabulary.item_ids != self.vocabulary.item_ids:
            raise DataMismatchError(
                f"`{found.folder or 'The data'}` is not what `{self.folder}` was trained on: its events, users or items differ. "
                f"Pass the data of the run with --data, or train again."
            )
        return found


def read_settings(folder: str | os.PathLike) -> RunSettings:
    """Read the part of a run folder that needs no model.

    Raises:
        ValueError: the folder is no run.
        NewerFormatError: a newer tfrec wrote it.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"`{folder}` is not a run: it has no {CONFIG}. Make one with `tfrec train DATA --out {folder}`."
        )
    about, values = read_json(folder / ABOUT), read_json(folder / CONFIG)
    version = check_format(folder, about, FORMAT)
    if version == 1:
        data_path = values.pop("data")
        return RunSettings(folder, version, Config.from_dict(IDS_ALONE | values), data_path)
    if version == 2 and values:
        values = IDS_ALONE | values
    config = Config.from_dict(values) if values else None
    known = {name: about[name] for name in ("fingerprint", "length_quantiles", "own")}
    return RunSettings(folder, version, config, about["data"], **known)


def split_of(data: PreparedData, config: Config) -> Split:
    """How a config splits its data; a config of `final_epochs` holds nothing out of the training part."""
    number = 0 if config.final_epochs else 2
    return make_split(data, config.split, config.test or "", config.validation or "", config.targets, number)


def without_cold(data: PreparedData, config: Config) -> PreparedData:
    """The data that a config trains on: all of it but `cold_items`."""
    return ColdItems(data, config.cold_items, config.seed).known if config.cold_items else data


def read_json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
