"""A load test of a model server over gRPC, closed loop or open loop. TensorFlow is not needed."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from tfrec_serving import channels
from tfrec_serving.addresses import read_addresses
from tfrec_serving.errors import ServingError
from tfrec_serving.ids import Id
from tfrec_serving.questions import Questions
from tfrec_serving.rest_transport import open_directly
from tfrec_serving.security import Pem, check_metadata, read_tls
from tfrec_serving.wire import PREDICT, Wire

CHANNELS = 8
CONNECT_SECONDS = 10
METRICS_PATH = "/monitoring/prometheus/metrics"


@dataclass(frozen=True)
class LoadReport:
    """The figures of a load test.

    Attributes:
        seconds: float, duration of the test.
        milliseconds: float64 array, shape `(answered,)`, latency of each answer, in the order of the answers.
        errors: dict, number of requests by status code; without OK.
        answers: list of bytes, the answers; empty unless `keep_answers` is set.
    """

    seconds: float
    milliseconds: np.ndarray
    errors: dict[str, int]
    answers: list[bytes]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.milliseconds) / self.seconds

    def percentile(self, share: float) -> float:
        """The latency in milliseconds that `share` percent of the answers stay within; NaN without an answer."""
        return float(np.percentile(self.milliseconds, share)) if len(self.milliseconds) else float("nan")


def recommend_requests(
    item_ids: Sequence[Id],
    history_length: int,
    k: int = 10,
    model_name: str = "default",
    number: int = 512,
    seed: int = 0,
) -> list[bytes]:
    """Serialized requests for `recommend` with random histories.

    Args:
        item_ids: ids to make histories of.
        history_length: int, items of each history.
        k: int, recommendations asked for. Default: 10.
        model_name: str, name of the model on the server. Default: `default`.
        number: int, number of requests. Default: 512.
        seed: int. Default: 0.
    """
    rng, wire = np.random.default_rng(seed), Wire(model_name)
    requests = []
    for _ in range(number):
        history = [item_ids[i] for i in rng.integers(len(item_ids), size=history_length)]
        question = Questions.recommend(history, k)
        requests.append(wire.request(question.signature_name, question.inputs).SerializeToString())
    return requests


def load_test(
    address: str,
    requests: Sequence[bytes],
    *,
    clients: int = 8,
    seconds: float = 10.0,
    rate: float | None = None,
    timeout: float = 10.0,
    keep_answers: bool = False,
    ca: Pem | None = None,
    certificate: Pem | None = None,
    key: Pem | None = None,
    metadata: Mapping[str, str | bytes] | None = None,
) -> LoadReport:
    """Send `PredictRequest`s in turn and time the answers.

    Args:
        address: str, `host:port` of gRPC, with TLS `grpcs://host:port`; see `Client`. Of several, with commas, each gets its share.
        requests: serialized requests, so that the client adds little to the measured time.
        clients: int, clients of the closed loop, each of which sends one request after the other. Default: 8.
        seconds: float, duration of the sending; requests under way at the end are waited for. Default: 10.
        rate: float, open-loop mode: send this many requests per second, whatever the server's pace. Default: closed loop.
        timeout: float, seconds after which a request fails. Default: 10.
        keep_answers: bool, whether the report holds the answers. Default: False.
        ca, certificate, key, metadata: see `Client`; `metadata` is a dict. Default: none.
    Raises:
        ServingError: nothing answers at the address.
        ValueError: it is an address of REST.
    """
    took: list[float] = []
    answers: list[bytes] = []
    codes: list[str] = []
    addresses, tls = read_addresses(address), read_tls(ca, certificate, key)
    if addresses[0].is_rest:
        raise ValueError(f"A load test is done over gRPC. Received: {address!r}; write host:port or grpcs://host:port.")
    pairs = check_metadata(metadata or {})
    with contextlib.ExitStack() as stack:
        number = CHANNELS if rate else clients
        opened = []
        for i in range(number):
            one = addresses[i % len(addresses)]
            options = [*channels.connection_options(one), ("grpc.use_local_subchannel_pool", 1)]  # a connection each
            opened.append(stack.enter_context(channels.open_channel(one, tls, options)))
        for channel in opened:
            _connect(channel, address)
        calls: list[Any] = [channel.unary_unary(PREDICT) for channel in opened]

        def finish(call: Any, begin: float, answer: bytes | None = None) -> None:
            """Record the end of a call."""
            spent = time.perf_counter() - begin
            if call.code() is not grpc.StatusCode.OK:
                codes.append(call.code().name)
                return
            took.append(spent)
            if keep_answers:
                answers.append(call.result() if answer is None else answer)

        def ask(client: int) -> None:
            """One request after the other."""
            sent = client
            while time.perf_counter() < end:
                begin, answer = time.perf_counter(), b""
                try:
                    answer, call = calls[client].with_call(requests[sent % len(requests)], timeout, pairs)
                except grpc.RpcError as error:
                    call = error
                finish(call, begin, answer)
                sent += clients

        start = time.perf_counter()
        end = start + seconds
        if rate is None:
            with ThreadPoolExecutor(clients) as pool:
                list(pool.map(ask, range(clients)))
        else:
            under_way: list[Any] = []
            while (now := time.perf_counter()) < end:
                for _ in range(int((now - start) * rate) - len(under_way)):
                    request = requests[len(under_way) % len(requests)]
                    call = calls[len(under_way) % CHANNELS].future(request, timeout, pairs)
                    call.add_done_callback(partial(finish, begin=time.perf_counter()))
                    under_way.append(call)
                time.sleep(0.001)
            for call in under_way:
                call.code()  # waits
        lasted = time.perf_counter() - start
    return LoadReport(lasted, 1e3 * np.array(took), dict(Counter(codes)), answers)


def _connect(channel: Any, address: str) -> None:
    """Wait until a channel is connected.

    Raises:
        ServingError: nothing answers; the message has gRPC's reason.
    """
    try:
        grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
    except grpc.FutureTimeoutError:
        try:
            channel.unary_unary(PREDICT)(b"", timeout=1)
            reason = ""
        except grpc.RpcError as error:
            reason = f" {channels.refusal(error)}"
        raise ServingError(grpc.StatusCode.UNAVAILABLE, f"Nothing answers at {address}.{reason}") from None


@dataclass(frozen=True)
class ServerProcess:
    """A model server in a process of its own.

    Attributes:
        process: `subprocess.Popen`.
        address: str, `host:port` of its gRPC.
        rest_address: str, `host:port` of its REST API and its metrics.
    """

    process: subprocess.Popen
    address: str
    rest_address: str

    def measure(self, requests: Sequence[bytes], *, seconds: float = 10.0, **load: Any) -> tuple[LoadReport, float]:
        """Run a load test after a warm-up; for the arguments, see `load_test`.

        Returns:
            `(report, milliseconds)`: the `LoadReport`, and the mean time of a request in the model.
        """
        warm = {"clients": load.get("clients", 8), "seconds": min(seconds, 2)}
        load_test(self.address, requests, **warm)  # type: ignore[arg-type]
        count, spent = self._totals()
        report = load_test(self.address, requests, seconds=seconds, **load)
        later, more = self._totals()
        return report, (more - spent) / max(later - count, 1)

    def _totals(self) -> tuple[float, float]:
        """The number of requests that the model has answered so far, and their total milliseconds in it."""
        text = open_directly(f"http://{self.rest_address}{METRICS_PATH}", 10).decode()
        sums = [
            sum(float(value) for value in re.findall(rf"runtime_latency_{what}{{.*?}} (\S+)", text))
            for what in ("count", "sum")
        ]
        return sums[0], sums[1] / 1e3


@contextlib.contextmanager
def server_process(model_base_path: Path, *flags: str) -> Iterator[ServerProcess]:
    """Start `tfrec-model-server` on free ports; stop it at the end.

    Raises:
        ServingError: it does not start; the message is its own.
    """
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        monitoring = Path(folder, "monitoring.config")
        monitoring.write_text(f'prometheus_config {{ enable: true, path: "{METRICS_PATH}" }}')
        own = ["--port=-1", "--rest_api_port=-1", f"--model_base_path={model_base_path}"]
        start = [sys.executable, "-c", "from tfrec_serving.server import main; main()"]
        process = subprocess.Popen(
            [*start, *own, f"--monitoring_config_file={monitoring}", *flags],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            found = re.search(r"gRPC at (\S+?), REST at (\S+?)\. ", said)
            if found is None:
                process.wait()
                log.seek(0)
                said = (log.read().strip() or said).splitlines()[-1]
                raise ServingError(grpc.StatusCode.UNAVAILABLE, f"The server did not start: {said}")
            yield ServerProcess(process, found[1], found[2])
        finally:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
