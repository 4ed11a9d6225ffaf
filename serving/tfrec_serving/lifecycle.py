"""The life of model versions: folders are watched, versions loaded, swapped in and unloaded."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tensorflow_serving.apis import get_model_status_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfrec_serving.config import check_models
from tfrec_serving.metrics import LOADS, Metrics
from tfrec_serving.servable import RequestError, Servable

log = logging.getLogger("tfrec_serving")
State = get_model_status_pb2.ModelVersionStatus.State
FAILED = 2
"""`tensorflow.error.Code` of a version that could not be loaded (UNKNOWN), as TensorFlow Serving reports it."""


@dataclass
class Version:
    """The state of one version.

    Attributes:
        state: int, as in `GetModelStatus`.
        servable: `Servable`, while the version is AVAILABLE.
        error: str, the reason of a failed load.
        seen: float, modification time of its files at the last try; a failed version is tried again when they change.
    """

    state: int = State.START
    servable: Servable | None = None
    error: str = ""
    seen: float = 0.0


@dataclass
class Model:
    """The config of a model, and its versions."""

    config: model_server_config_pb2.ModelConfig
    versions: dict[int, Version] = field(default_factory=dict)

    @property
    def available(self) -> dict[int, Servable]:
        """The servables that answer, by version."""
        return {n: v.servable for n, v in list(self.versions.items()) if v.servable is not None}


def _changed(folder: Path) -> float:
    """The newest modification time of a version's files."""
    return max((path.stat().st_mtime for path in (folder, *folder.rglob("*"))), default=0.0)


def version_folders(base_path: Path) -> dict[int, Path]:
    """The version folders by number: `0001` is version 1. Of two folders of one version, the shorter name counts.

    Raises:
        OSError: the folder cannot be read.
    """
    found: dict[int, Path] = {}
    for folder in sorted(base_path.iterdir(), key=lambda path: len(path.name)):
        if re.fullmatch("[0-9]+", folder.name) and int(folder.name) < 2**63 and folder.is_dir():
            if int(folder.name) in found:
                log.warning("Ignored `%s`: `%s` is the same version", folder, found[int(folder.name)].name)
            found.setdefault(int(folder.name), folder)
    return found


def wanted_versions(base_path: Path, policy: Any) -> dict[int, Path]:
    """The version folders that a `ServableVersionPolicy` asks for; the newest one by default.

    Raises:
        OSError: the folder cannot be read.
    """
    folders = version_folders(base_path)
    kind = policy.WhichOneof("policy_choice")
    wanted = set(sorted(folders)[-(policy.latest.num_versions or 1) :])
    if kind == "all":
        wanted = set(folders)
    elif kind == "specific":
        wanted = set(policy.specific.versions)
    return {number: folder for number, folder in folders.items() if number in wanted}


class Models:
    """The models that a server holds, kept in step with their folders.

    A new version is loaded and warmed up before the version that it replaces is unloaded; requests under way keep theirs. A
    version that cannot be loaded is reported, and the versions of before stay.

    Args:
        config: `ModelServerConfig`, the models.
        poll_seconds: float, seconds between two looks at the folders; 0 or less looks only when `poll` is called. Default: 1.
        allow_labels_without_version: bool, whether a label may name a version that is not available yet. Default: False.
    Raises:
        RequestError: see `reload`.
    """

    def __init__(
        self,
        config: model_server_config_pb2.ModelServerConfig,
        poll_seconds: float = 1.0,
        allow_labels_without_version: bool = False,
    ) -> None:
        self.metrics = Metrics()
        self._allow_labels_without_version = allow_labels_without_version
        self._models: dict[str, Model] = {}
        self._changing = threading.Lock()
        self._stopped = threading.Event()
        self._watchers: list[threading.Thread] = []
        self.reload(config)
        if poll_seconds > 0:
            self.every(poll_seconds, self.poll, "look at the folders")

    def every(self, seconds: float, do: Callable[[], Any], name: str) -> None:
        """Call `do` again and again until `stop`. An error is logged by `name`, and the next call may do better."""

        def run() -> None:
            while not self._stopped.wait(seconds):
                try:
                    do()
                except Exception as error:
                    log.error("Could not %s: %s", name, error)

        self._watchers.append(threading.Thread(target=run, name=name, daemon=True))
        self._watchers[-1].start()

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        for watcher in self._watchers:
            watcher.join()

    def reload(self, config: model_server_config_pb2.ModelServerConfig) -> None:
        """Follow another config: unload the models that it lacks, load new ones.

        Raises:
            RequestError: INVALID_ARGUMENT, where the config cannot be followed; FAILED_PRECONDITION, where a label names a
                version that is not available. Nothing has changed then.
        """
        try:
            check_models(config)
        except ValueError as error:
            raise RequestError("INVALID_ARGUMENT", str(error)) from None
        wanted = {model.name: model for model in config.model_config_list.config}
        with self._changing:
            before = self._models
            models = {}
            for name, one in wanted.items():
                old = before.get(name)
                is_same = old is not None and old.config.base_path == one.base_path
                models[name] = Model(one, dict(old.versions) if old is not None and is_same else {})
            there = {name: self._wanted(model) for name, model in models.items()}
            for name, model in models.items():
                self._load(model, there[name])
            for name, one in wanted.items() if not self._allow_labels_without_version else ():
                for label, version in one.version_labels.items():
                    if version not in models[name].available:
                        raise RequestError(
                            "FAILED_PRECONDITION",
                            f"Request to assign label {label} to version {version} of model {name}, which is not currently "
                            "available for inference",
                        )
            self._models = models
            for name, model in models.items():
                self._let_go(model, there[name])

    def poll(self) -> None:
        """Look at the folders once: load new versions, unload those that are no longer wanted."""
        with self._changing:
            for model in self._models.values():
                wanted = self._wanted(model)
                self._load(model, wanted)
                self._let_go(model, wanted)

    def _wanted(self, model: Model) -> dict[int, Path] | None:
        """The wanted versions that lie in the folder; None where it cannot be read."""
        try:
            return wanted_versions(Path(model.config.base_path), model.config.model_version_policy)
        except OSError as error:
            log.error("Could not read the folder of %s: %s", model.config.name, error)
            return None

    def _load(self, model: Model, wanted: Mapping[int, Path] | None) -> None:
        """Load the wanted versions that are not loaded yet, the oldest first."""
        for number, folder in sorted((wanted or {}).items()):
            known = model.versions.get(number)
            has_failed = known is not None and known.error and known.seen == _changed(folder)
            if known is not None and (known.servable is not None or has_failed):
                continue
            about = {"model": model.config.name, "version": number}
            version = model.versions[number] = Version(State.LOADING, seen=_changed(folder))
            try:
                version.servable = Servable(model.config.name, folder)
            except Exception as error:  # whatever is wrong with it, the server goes on
                version.state, version.error = State.END, str(error)
                self.metrics.count(LOADS, model_path=str(folder), status="fail")
                log.error("Refused version %d of %s: %s", number, model.config.name, error, extra=about)
            else:
                version.state = State.AVAILABLE
                self.metrics.count(LOADS, model_path=str(folder), status="success")
                log.info("Serving version %d of %s", number, model.config.name, extra=about)

    def _let_go(self, model: Model, wanted: Mapping[int, Path] | None) -> None:
        """Unload the versions that are no longer wanted, once a wanted one can answer."""
        if wanted is None or (wanted and not set(wanted) & set(model.available)):
            return
        for number, version in model.versions.items():
            if number not in wanted and version.servable is not None:
                # requests under way hold on to it; the last of them frees it
                version.servable, version.state = None, State.END
                about = {"model": model.config.name, "version": number}
                log.info("Let go version %d of %s", number, model.config.name, extra=about)

    def find(self, name: str, version: int | None = None, label: str = "") -> Servable:
        """The servable that a model spec asks for: a version, a label, or the newest.

        Raises:
            RequestError: NOT_FOUND or INVALID_ARGUMENT, in TensorFlow Serving's words.
        """
        model = self._models.get(name)
        if label:
            labels = {} if model is None else model.config.version_labels
            if label not in labels:
                raise RequestError("INVALID_ARGUMENT", f"Unrecognized servable version label: {label}")
            version = labels[label]
        available = {} if model is None else model.available
        servable = available.get(max(available, default=0) if version is None else version)
        if servable is None:
            wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
            raise RequestError("NOT_FOUND", f"Servable not found for request: {wanted}")
        return servable

    def status(self, name: str, version: int | None = None) -> get_model_status_pb2.GetModelStatusResponse:
        """The states of a model's versions, the newest first.

        Raises:
            RequestError: NOT_FOUND.
        """
        model = self._models.get(name)
        states = {} if model is None else model.versions
        answer = get_model_status_pb2.GetModelStatusResponse()
        for number in sorted(states, reverse=True):
            if version in (None, number):
                one = answer.model_version_status.add(version=number, state=states[number].state)  # type: ignore[arg-type]
                one.status.SetInParent()
                if states[number].error:
                    one.status.error_code, one.status.error_message = FAILED, states[number].error
        if not answer.model_version_status:
            wanted = "any versions" if version is None else f"version {version}"
            raise RequestError("NOT_FOUND", f"Could not find {wanted} of model {name}")
        return answer

    @property
    def names(self) -> list[str]:
        """The models, in order."""
        return sorted(self._models)

    @property
    def is_ready(self) -> bool:
        """Whether every model has a version that answers."""
        return all(model.available for model in self._models.values())

    @property
    def problem(self) -> str:
        """The reason why a model has no version that answers; "" where all have one."""
        for model in self._models.values():
            if not model.available:
                errors = [version.error for _, version in sorted(model.versions.items()) if version.error]
                path = model.config.base_path
                return (
                    errors[-1] if errors else f"`{path}` has no version folder (a number, with a saved_model.pb in it)."
                )
        return ""
