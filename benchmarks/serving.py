"""The model server under load: `python benchmarks/serving.py EXPORT [SECONDS]`.

Measures one client, eight clients with and without batching, an overload of twice the capacity for SECONDS (default: 60), ten
version swaps under load, and the start after kill -9. Client and server share the machine.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet

from tfrec.data.prepared import ITEMS
from tfrec.deploy.saved_model import latest_version
from tfrec_serving import Client
from tfrec_serving.load import LoadReport, ServerProcess, load_test, recommend_requests, server_process
from tfrec_serving.messages import PredictResponse
from tfrec_serving.rest_transport import open_directly

HISTORY_LENGTH = 50


def resident_mib(server: ServerProcess) -> float:
    """The resident memory of the server now."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def measured(server: ServerProcess, requests: list[bytes], clients: int) -> LoadReport:
    """Run a load test on a warm server; print it with the time in the model."""
    report, in_model = server.measure(requests, clients=clients)
    mean = report.milliseconds.mean()
    print(
        f"{clients} clients: {report.rate:.0f}/s, p50 {report.percentile(50):.2f} ms, p99 {report.percentile(99):.2f} ms; in the "
        f"model {in_model:.2f} ms of {mean:.2f} ({in_model / mean:.0%}); p50 less "
        f"the model {report.percentile(50) - in_model:.2f} ms; "
        f"errors {report.errors or 'none'}",
        flush=True,
    )
    return report


def overload(server: ServerProcess, requests: list[bytes], rate: float, seconds: float) -> None:
    """Overload the server; print its answers, its peak memory, and its answers right after."""
    before, peak, stop = resident_mib(server), [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            peak[0] = max(peak[0], resident_mib(server))

    watcher = threading.Thread(target=watch)
    watcher.start()
    report = load_test(server.address, requests, rate=rate, seconds=seconds)
    begin = time.perf_counter()
    after = load_test(server.address, requests, clients=8, seconds=1)
    stop.set()
    watcher.join()
    print(
        f"{rate:.0f}/s for {seconds:.0f} s: answered {report.rate:.0f}/s, p50 {report.percentile(50):.0f} ms, p99 "
        f"{report.percentile(99):.0f} ms; not answered {report.errors}; memory {before:.0f} to {peak[0]:.0f} MiB; right after: "
        f"{after.rate:.0f}/s, p99 {after.percentile(99):.0f} ms, errors {after.errors or 'none'}, "
        f"in {time.perf_counter() - begin:.1f} s",
        flush=True,
    )


def swaps(base: Path, server: ServerProcess, requests: list[bytes]) -> None:
    """Add ten versions under load, each after the one before is available."""
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(load_test, server.address, requests, clients=4, seconds=60, keep_answers=True)
        for number in range(2, 12):
            shutil.copytree(base / "1", base / f".{number}")
            (base / f".{number}").rename(base / str(number))
            while not is_available(server, number):
                time.sleep(0.1)
        report = load.result()
    versions = [PredictResponse.FromString(answer).model_spec.version.value for answer in report.answers]
    print(
        f"ten swaps: {len(versions)} answers from versions {sorted(set(versions))}, p99 {report.percentile(99):.1f} ms, "
        f"errors {report.errors or 'none'}",
        flush=True,
    )


def is_available(server: ServerProcess, version: int) -> bool:
    """Whether a version is available."""
    try:
        answer = open_directly(f"http://{server.rest_address}/v1/models/default/versions/{version}", 10)
        return json.loads(answer)["model_version_status"][0]["state"] == "AVAILABLE"
    except urllib.error.HTTPError:
        return False


def main(export: Path, seconds: float) -> None:
    items = pyarrow.parquet.read_table(latest_version(export) / "assets.extra" / ITEMS)["item_id"].to_pylist()
    requests = recommend_requests(items, HISTORY_LENGTH)
    with server_process(export) as server:
        measured(server, requests, 1)
        plain = measured(server, requests, 8)
        overload(server, requests, 2 * plain.rate, seconds)
    with server_process(export, "--enable_batching") as server:
        print("batching:", end=" ")
        batched = measured(server, requests, 8)
        overload(server, requests, 2 * batched.rate, seconds)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        shutil.copytree(latest_version(export), base / "1")
        with server_process(base) as server:
            swaps(base, server, requests)
    for what in ("started", "killed and started again"):
        begin = time.perf_counter()
        with server_process(export) as server, Client(server.address) as client:
            client.recommend(items[:2])
            print(f"{what}: answers after {time.perf_counter() - begin:.1f} s")
            server.process.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 60)
