"""Random requests to a server with little memory: `python benchmarks/fuzz.py EXPORT [REQUESTS [SEED [FLAG ...]]]`.

Starts `tfrec-model-server FLAG ...` in a process of its own and limits its memory (`resource.prlimit`, RLIMIT_DATA) to what it
has after its start and MEMORY_MIB more. Sends REQUESTS (default: 10,000) over REST and gRPC from two clients at a
time: right requests, nearly right ones, any JSON, any bytes, long ids, deep nesting, shapes without values, bodies of
1 MB, gzip. Prints the answers by code, the slowest answer, and the resident memory after a tenth of the requests, at
the end, and at most.

Ends with 1 where the server died, failed on a request that it should have answered or refused, wrote JSON that
`JSON.parse` refuses, took more than 500 ms, or grew by more than GROWTH_MIB after the first tenth.

A request has 64 rows at most, since an answer takes as long as its rows do. A slow answer is asked for twice more and
its quickest time counts: other programs on the machine are not what is measured.
"""

from __future__ import annotations

import gzip
import http.client
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from tfrec_serving.load import ServerProcess, server_process
from tfrec_serving.messages import PredictRequest, PredictResponse
from tfrec_serving.wire import PREDICT, STATUS

MEMORY_MIB = 512
LONGEST_MS = 500.0
GROWTH_MIB = 128
"""Resident memory that may be added after a tenth of the requests: an allocator cannot give back every gap."""
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"
SIGNATURES = {
    "serving_default": ["history"],
    "recommend": ["history", "exclude", "k"],
    "similar_items": ["item_ids", "k"],
    "score": ["history", "candidates"],
    "embed_history": ["history"],
    "embed_items": ["item_ids"],
}
PATHS = ["/v1/models/default:predict"] * 20 + [
    "/v1/models/default/versions/1:predict", "/v1/models/default/versions/99999999999999999999:predict",
    "/v1/models/nobody:predict", "/v1/models/default/labels/x:predict", "/v1/models/default:classify", "/v1/models/%00:predict",
    "/",
]  # fmt: skip


class Requests:
    """Random requests; the same ones for the same seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def one_of(self, *makers: Callable[[], Any]) -> Any:
        return self.rng.choice(makers)()

    def item(self) -> str:
        return self.one_of(
            *[lambda: f"item-{self.rng.randrange(300)}"] * 8,
            lambda: "",
            lambda: "\0" * self.rng.randrange(4),
            lambda: chr(self.rng.choice([0, 0xD800, 0xDFFF, 0x10FFFF, 0x301, 34, 92])) * self.rng.randrange(1, 9),
            lambda: "x" * self.rng.randrange(2000),
        )

    def items(self, width: int) -> list[str]:
        return [self.item() for _ in range(width)]

    def inputs(self) -> tuple[str, dict[str, list]]:
        """A right request: its signature, and its columns."""
        signature = self.rng.choice(list(SIGNATURES))
        rows = self.one_of(*[lambda: 1] * 6, lambda: self.rng.randrange(65))
        width = lambda: self.one_of(lambda: 1, lambda: self.rng.randrange(60), lambda: self.rng.randrange(300))  # noqa: E731
        k = lambda: self.one_of(lambda: 10, lambda: self.rng.randrange(-5, 1100), lambda: self.rng.randrange(2**31))  # noqa: E731
        make = {"k": lambda _: k(), "item_ids": lambda _: self.item()}
        columns = {}
        for name in SIGNATURES[signature]:
            wide = width()
            columns[name] = [make.get(name, self.items)(wide) for _ in range(rows)]
        return signature, columns

    def large(self) -> tuple[str, dict[str, list]]:
        """Up to 1 MB: many short ids, or a long one among others."""
        history = self.one_of(
            lambda: ["a"] * self.rng.randrange(200_000),
            lambda: ["x" * self.rng.randrange(1_000_000)] + ["a"] * self.rng.randrange(5_000),
            lambda: ["x" * 20_000] * self.rng.randrange(50),
        )
        name = self.rng.choice(["history", "exclude"])
        return "recommend", {"history": [["item-1"]], "exclude": [[]], "k": [10]} | {name: [history]}

    def value(self, depth: int = 0) -> Any:
        """Any JSON."""
        rng = self.rng
        simple = [
            lambda: None, lambda: rng.random() < 0.5, lambda: rng.randrange(-(2**70), 2**70), lambda: rng.uniform(-9, 9),
            lambda: rng.choice([float("nan"), float("inf"), -float("inf"), 1e300]), self.item,
            lambda: {"b64": rng.choice(["eA==", "?", "", 3, None])},
        ]  # fmt: skip
        nested = [
            lambda: [self.value(depth + 1) for _ in range(rng.randrange(4))],
            lambda: {rng.choice(["history", "b64", "k", ""]): self.value(depth + 1) for _ in range(rng.randrange(3))},
        ]
        return self.one_of(*simple, *(nested * 3 if depth < 5 else []))

    def mutated(self, body: bytes) -> bytes:
        """Some bytes cut, changed, or doubled."""
        data = bytearray(body)
        for _ in range(self.rng.randrange(1, 4)):
            at, to = sorted(self.rng.randrange(len(data) + 1) for _ in range(2))
            change = self.rng.choice(
                [b"", bytes(data[at:to][:4096] * 2), self.rng.randbytes(3), b"[", b"}", b"null", b"1e999"]
            )
            data[at : self.rng.choice([at, at + 1, to])] = change
        return bytes(data)

    def body(self) -> bytes:
        """A body of REST."""
        signature, columns = self.large() if self.rng.random() < 0.03 else self.inputs()
        rows = lambda: [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]  # noqa: E731
        spoiled = lambda: columns | {self.rng.choice([*columns, "x"]): self.value()}  # noqa: E731
        request = self.one_of(
            *[lambda: {"signature_name": signature, "inputs": columns}] * 3,
            *[lambda: {"signature_name": signature, "instances": rows()}] * 3,
            lambda: {"signature_name": signature, "inputs": spoiled()},
            lambda: {"signature_name": signature, "instances": [*rows(), self.value()]},
            lambda: {self.rng.choice(["inputs", "instances"]): self.value(), "signature_name": self.value()},
            self.value,
        )
        whole = json.dumps(request).encode()
        depth = self.rng.choice([30, 600, 20_000])
        return self.one_of(
            *[lambda: whole] * 6,
            lambda: self.mutated(whole),
            lambda: self.rng.randbytes(self.rng.randrange(300)),
            lambda: b'{"instances":' + b"[" * depth + b'"a"' + b"]" * self.rng.choice([depth, 0]) + b"}",
            lambda: b'{"inputs":{"history":[["a"]],"k":[' + b"1" * self.rng.randrange(6000) + b"]}}",
        )

    def rest(self) -> tuple[str, str, bytes, dict[str, str]]:
        """`(method, path, body, headers)`."""
        body, path = self.body(), self.rng.choice(PATHS)
        if self.rng.random() < 0.05:
            body = gzip.compress(
                self.one_of(lambda: body, lambda: b" " * 70_000_000 if self.rng.random() < 0.1 else body), 1
            )
            return "POST", path, self.one_of(lambda: body, lambda: self.mutated(body)), {"Content-Encoding": "gzip"}
        return self.rng.choice(["POST"] * 30 + ["GET", "PUT"]), path, body, {}

    def tensor(self, tensor: Any) -> None:
        """Any tensor, more or less."""
        rng = self.rng
        tensor.dtype = rng.choice([7, 7, 3, 1, rng.randrange(130)])
        size = lambda: self.one_of(*[lambda: rng.randrange(4)] * 4, lambda: rng.randrange(-2, 2**62), lambda: 100_000)  # noqa: E731
        dims = rng.choice([[1, 2], [1], [1, 100_000], [size() for _ in range(rng.randrange(5))]])
        for dim in [64 if dim == 100_000 else dim for dim in dims[:1]] + dims[1:]:
            tensor.tensor_shape.dim.add(size=dim)
        tensor.tensor_shape.unknown_rank = rng.random() < 0.05
        tensor.string_val.extend(self.item().encode("utf-8", "surrogatepass") for _ in range(rng.randrange(4)))
        tensor.int_val.extend(rng.randrange(-(2**31), 2**31) for _ in range(rng.randrange(3)))
        tensor.float_val.extend(rng.uniform(-9, 9) for _ in range(rng.randrange(3)))
        tensor.tensor_content = rng.choice([b""] * 5 + [rng.randbytes(16)])

    def grpc(self) -> tuple[str, bytes]:
        """`(method, message)`."""
        signature, columns = self.large() if self.rng.random() < 0.03 else self.inputs()
        request = PredictRequest()
        request.model_spec.name = self.rng.choice(["default"] * 9 + ["nobody", ""])
        request.model_spec.signature_name = self.rng.choice([signature] * 9 + ["nothing"])
        if self.rng.random() < 0.1:
            request.output_filter.append(self.rng.choice(["scores", "item_ids", "é" * 3000]))
        for name, column in columns.items():
            tensor = request.inputs.add(key=name).value
            width = (
                max((len(row) for row in column), default=0) if name in ("history", "exclude", "candidates") else None
            )
            if self.rng.random() < 0.15:
                self.tensor(tensor)
                continue
            tensor.dtype = 3 if name == "k" else 7
            for size in (len(column),) if width is None else (len(column), width):
                tensor.tensor_shape.dim.add(size=size)
            if name == "k":
                tensor.int_val.extend(column)
            else:
                flat = column if width is None else [v for row in column for v in row]
                tensor.string_val.extend(v.encode("utf-8", "surrogatepass") for v in flat)
        message = request.SerializeToString()
        return self.one_of(
            *[lambda: (PREDICT, message)] * 8,
            lambda: (PREDICT, self.mutated(message)),
            lambda: (self.rng.choice([STATUS, METADATA]), self.one_of(lambda: message, lambda: self.rng.randbytes(40))),
        )


@dataclass
class Report:
    """What came of it: codes, the slowest answer in milliseconds, resident MiB, and what must not be."""

    codes: Counter = field(default_factory=Counter)
    slowest_ms: float = 0.0
    memory_mib: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def status_mib(pid: int, name: str) -> float:
    """A line of `/proc/PID/status` in MiB."""
    return int(Path(f"/proc/{pid}/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def ask_rest(server: ServerProcess, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[str, str]:
    """`(code, fault)`."""
    connection = http.client.HTTPConnection(server.rest_address, timeout=30)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
    finally:
        connection.close()
    try:
        json.loads(text, parse_constant=lambda constant: text.index(f"no JSON: {constant}"))
    except ValueError:
        return f"HTTP {answer.status}", f"{method} {path}: no strict JSON: {text[:200]}"
    return f"HTTP {answer.status}", f"{text[:200]}" if answer.status >= 500 else ""


def _channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(address, [("grpc.max_receive_message_length", 64 << 20)])


def ask_grpc(channel: grpc.Channel, method: str, message: bytes) -> tuple[str, str]:
    """`(code, fault)`."""
    try:
        answer = channel.unary_unary(method)(message, timeout=30)
    except grpc.RpcError as error:
        name, details = error.code().name, error.details() or ""
        # bytes that are no message are refused by gRPC itself, with this code
        is_expected = name != "INTERNAL" or details.startswith("Exception deserializing request")
        return name, "" if is_expected and name in (
            "INTERNAL",
            "INVALID_ARGUMENT",
            "NOT_FOUND",
            "FAILED_PRECONDITION",
        ) else details
    if method == PREDICT:
        PredictResponse.FromString(answer)
    return "OK", ""


def fuzz(export: Path, number: int, seed: int = 0, *flags: str) -> Report:
    """Ask a new server `number` random requests."""
    report = Report()
    with server_process(export, *flags) as server, _channel(server.address) as channel:
        pid = server.process.pid
        most = int(status_mib(pid, "VmData") + MEMORY_MIB) << 20
        resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))

        def ask(i: int) -> None:
            requests = Requests(seed * 1_000_003 + i)
            call, request = (ask_rest, (server, *requests.rest())) if i % 2 else (ask_grpc, (channel, *requests.grpc()))
            times: list[float] = []
            while len(times) < 3 and min(times, default=LONGEST_MS) >= LONGEST_MS:
                begin = time.perf_counter()
                try:
                    code, fault = call(*request)  # type: ignore[operator]
                except (OSError, http.client.HTTPException, ValueError) as error:
                    code, fault = type(error).__name__, f"{type(error).__name__}: {error}"
                times.append(1e3 * (time.perf_counter() - begin))
            if min(times) > LONGEST_MS:
                fault = fault or f"took {min(times):.0f} ms"
            report.codes[("REST " if i % 2 else "gRPC ") + code] += 1
            report.slowest_ms = max(report.slowest_ms, min(times))
            if fault:
                report.faults.append(f"request {i} (seed {seed}): {fault}")

        with ThreadPoolExecutor(2) as pool:
            for part in (range(number // 10), range(number // 10, number)):
                list(pool.map(ask, part))
                if server.process.poll() is not None:
                    report.faults.append(f"the server ended with {server.process.returncode}")
                    return report
                report.memory_mib.append(status_mib(pid, "VmRSS"))
        first, last = report.memory_mib
        if last - first > GROWTH_MIB:
            report.faults.append(f"the memory grew from {first:.0f} to {last:.0f} MiB")
        report.memory_mib.append(status_mib(pid, "VmHWM"))
    return report


def main() -> int:
    """Run and print."""
    number, seed = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((2, 10_000), (3, 0)))
    report = fuzz(Path(sys.argv[1]), number, seed, *sys.argv[4:])
    print(f"{report.codes.total():,} requests")
    print(*(f"  {code}: {n:,}" for code, n in sorted(report.codes.items())), sep="\n")
    print(f"slowest answer {report.slowest_ms:.0f} ms")
    print("resident MiB after a tenth, at the end, at most:", ", ".join(f"{mib:.0f}" for mib in report.memory_mib))
    print(*(report.faults[:20] or ["no faults"]), sep="\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
