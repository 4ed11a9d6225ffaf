"""TensorFlow Serving's REST API over loaded models: predict in row and column format, metadata, status."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import itertools
import json
import os
import reprlib
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import numpy as np
import tensorflow as tf
from aiohttp import web
from google.protobuf import json_format

from tfrec_serving import grpc_services
from tfrec_serving.predictor import Predictor
from tfrec_serving.servable import MAX_MESSAGE_BYTES, RequestError, Servable, refusal

BODY_SECONDS = 30.0
"""Seconds within which the body of a request must arrive."""
MAX_BODIES_BYTES = 4 * MAX_MESSAGE_BYTES
"""Bytes of all bodies together that are held at a time."""
SMALL_BODY_BYTES = 1 << 20
"""Bodies up to this find room where larger ones have taken three quarters of it."""
MAX_RANK = 32
"""Lists inside of lists, in a tensor."""


def _bytes(value: Any, name: str) -> bytes:
    """A JSON string as bytes, `{"b64": ...}` decoded."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict) and list(value) == ["b64"]:
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise RequestError("INVALID_ARGUMENT", f'input "{name}": a b64 value is not base64.') from None
    raise RequestError("INVALID_ARGUMENT", f'input "{name}" must hold strings. Received: {reprlib.repr(value)}.')


def _flatten(value: Any) -> tuple[list, tuple[int, ...]]:
    """The values of nested lists, and their shape.

    Raises:
        ValueError: rows of different lengths, or nested too deep.
    """
    flat, shape = [value], []
    while flat and isinstance(flat[0], list):
        lengths = {len(row) if isinstance(row, list) else -1 for row in flat}
        if len(lengths) > 1:
            raise ValueError("rows of different lengths")
        shape.append(lengths.pop())
        if len(shape) > MAX_RANK:
            raise ValueError(f"lists are nested more than {MAX_RANK} deep")
        flat = list(itertools.chain.from_iterable(flat))
    if any(isinstance(v, list) for v in flat):
        raise ValueError("rows of different lengths")
    return flat, tuple(shape)


def to_array(value: Any, name: str, dtype: tf.DType, rank: int) -> np.ndarray:
    """A JSON value as an array of the dtype that the signature asks for; strings as an object array of bytes.

    NumPy never sees the strings: it would give each the room of the longest, and drop NULs at their ends. An empty list says
    nothing of its rank: it gets the signature's.
    """
    try:
        flat, shape = _flatten(value)
        if dtype == tf.string:
            array = np.empty(len(flat), object)
            array[:] = [_bytes(v, name) for v in flat]
        else:
            kinds = (bool,) if dtype.is_bool else (int, float)
            if not all(type(v) in kinds for v in flat):
                raise ValueError("neither true nor false" if dtype.is_bool else "not numbers")
            numbers = np.array(flat)
            if not np.can_cast(numbers.dtype, np.float64):
                raise ValueError("out of range")
            # NaN as an integer is refused below; 1e300 is infinite as a float32
            with np.errstate(invalid="ignore", over="ignore"):
                array = numbers.astype(dtype.as_numpy_dtype)
            if dtype.is_integer and not np.array_equal(array, numbers):
                raise ValueError("out of range, or not whole numbers")
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestError("INVALID_ARGUMENT", f'input "{name}" is no tensor of {dtype.name}: {error}.') from None
    if array.size == 0 and len(shape) < rank:
        shape += (0,) * (rank - len(shape))
    return array.reshape(shape)


def parse_request(body: bytes | bytearray, servable: Servable) -> tuple[str, dict[str, np.ndarray], bool]:
    """`(signature name, inputs, is row format)` of a predict request.

    Raises:
        RequestError: INVALID_ARGUMENT, naming what is wrong.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("INVALID_ARGUMENT", f"JSON Parse error: {error}") from None
    if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
        raise RequestError("INVALID_ARGUMENT", "The request must be a JSON object with either `instances` or `inputs`.")
    signature_name = request.get("signature_name", "serving_default")
    if not isinstance(signature_name, str):
        raise RequestError("INVALID_ARGUMENT", "`signature_name` must be a string.")
    try:
        definition = servable.signature(signature_name or "serving_default")
    except RequestError:  # TensorFlow Serving says it in other words here than over gRPC
        message = f'Serving signature name: "{signature_name}" not found in signature def'
        raise RequestError("INVALID_ARGUMENT", message) from None
    is_row = "instances" in request
    required = servable.required(definition)
    columns = _columns(request["instances"], required) if is_row else request["inputs"]
    if not isinstance(columns, dict) or (list(columns) == ["b64"] and "b64" not in definition.inputs):
        if len(required) != 1:
            raise RequestError("INVALID_ARGUMENT", f"`inputs` must be an object with: {', '.join(required)}.")
        columns = {required[0]: columns}
    inputs = {}
    for name, value in columns.items():
        if name in definition.inputs:
            info = definition.inputs[name]
            inputs[name] = to_array(value, name, tf.as_dtype(info.dtype), len(info.tensor_shape.dim))
        else:
            inputs[name] = np.empty(0)  # `predict` refuses it by its name, whatever it holds
    return signature_name or "serving_default", inputs, is_row


def _columns(instances: Any, required: list[str]) -> dict[str, list]:
    """Rows to columns; a row that is no object is the one input that is required."""
    if not isinstance(instances, list) or not instances:
        raise RequestError("INVALID_ARGUMENT", "`instances` must be a list with at least one row.")
    is_named = [isinstance(row, dict) and list(row) != ["b64"] for row in instances]
    if not any(is_named):
        if len(required) != 1:
            raise RequestError("INVALID_ARGUMENT", f"Each instance must be an object with: {', '.join(required)}.")
        return {required[0]: instances}
    names = set(instances[0]) if is_named[0] else set()
    if not all(is_named) or any(set(row) != names for row in instances):
        raise RequestError("INVALID_ARGUMENT", "Every instance must be an object with the same names.")
    return {name: [row[name] for row in instances] for name in instances[0]}


def format_answer(outputs: Mapping[str, np.ndarray], is_row: bool) -> dict[str, Any]:
    """`{"predictions": rows}` or `{"outputs": columns}`; a single output stands without its name."""
    columns = {name: _json_value(value) for name, value in outputs.items()}
    if not is_row:
        return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}
    if len(columns) == 1:
        return {"predictions": next(iter(columns.values()))}
    return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}


def _json_value(array: np.ndarray) -> Any:
    """Nested lists that every JSON parser reads: bytes as text, float32 as the shortest decimal that reads back the same.

    JSON has no infinity: the finite number furthest from 0 stands for it, so that an order by score stays right. NaN is null.
    """
    if not array.size:
        return array.tolist()
    if array.dtype.kind == "O":
        return np.frompyfunc(lambda b: b.decode("utf-8", "replace"), 1, 1)(array).tolist()
    if array.dtype.kind != "f":
        return array.tolist()
    largest, values = np.finfo(array.dtype).max, np.empty(array.size, object)
    values[:] = [None if x != x else float(str(x)) for x in np.clip(array, -largest, largest).ravel()]
    return values.reshape(array.shape).tolist()


class RestServer:
    """The REST API, on an event loop in a thread of its own; model calls run in worker threads.

    Args:
        predictor: answers.
        metrics_path: where Prometheus reads, such as `/monitoring/prometheus/metrics`; None: nowhere.
        max_concurrent_requests: further ones are refused with RESOURCE_EXHAUSTED.
        timeout_seconds: float, how long a request may take, its body included; 0: any time. A thread that is late keeps its
            place among `max_concurrent_requests` until it ends.
        has_cors: bool, whether pages of other origins may read the answers.
    """

    def __init__(
        self,
        predictor: Predictor,
        metrics_path: str | None = None,
        max_concurrent_requests: int = 256,
        *,
        timeout_seconds: float = 30.0,
        has_cors: bool = False,
    ) -> None:
        self._timeout_seconds = timeout_seconds if timeout_seconds > 0 else None
        self.predictor, self.models = predictor, predictor.models
        # changed on the event loop alone
        self._under_way, self._most, self._held = 0, max_concurrent_requests, 0
        self._workers = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4), thread_name_prefix="rest")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rest", daemon=True)
        self._thread.start()
        app = web.Application(
            client_max_size=MAX_MESSAGE_BYTES, middlewares=[*([_cors] if has_cors else []), self._errors]
        )
        name = r"/v1/models/{name:[^/:]+}"
        for prefix in (name, name + r"/versions/{version:\d{1,19}}", name + r"/labels/{label:[^/:]+}"):
            app.router.add_get(prefix, self._status)
            app.router.add_get(prefix + "/metadata", self._metadata)
            app.router.add_post(prefix + ":predict", self._predict)
        if metrics_path is not None:
            app.router.add_get(metrics_path, self._metrics)
        self._runner = web.AppRunner(app, access_log=None)

    def start(self, host: str, port: int) -> int:
        """Listen; return the port.

        Raises:
            OSError: the port is taken.
        """
        try:
            asyncio.run_coroutine_threadsafe(self._start(host, port), self._loop).result()
        except OSError as error:
            raise OSError(f"REST cannot listen at {host}:{port}: {error.strerror or error}.") from None
        return self._runner.addresses[0][1]

    async def _start(self, host: str, port: int) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()

    def stop(self) -> None:
        """Finish the requests under way and stop."""
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._workers.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @web.middleware
    async def _errors(self, request: web.Request, handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RequestError as error:
            return _error_response(error)
        except web.HTTPException as error:
            if error.status in (404, 405) and request.path.lower().startswith("/v1/"):
                message = f"Malformed request: {request.method} {request.path}"
                return web.json_response({"error": message}, status=400)
            return web.json_response({"error": error.reason}, status=error.status)
        except Exception as error:
            return _error_response(refusal(error))

    def _servable(self, request: web.Request) -> Servable:
        version = request.match_info.get("version")
        label = request.match_info.get("label", "")
        return self.models.find(request.match_info["name"], None if version is None else int(version), label)

    async def _predict(self, request: web.Request) -> web.Response:
        with self.predictor.counted("REST", "Predict", request.match_info["name"]):
            self._check_room()  # before the body is read
            servable, body, job = self._servable(request), bytearray(), None
            end = None if self._timeout_seconds is None else time.monotonic() + self._timeout_seconds
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    await self._read(request, body)
                    self._check_room()  # only now a place is taken: one that sends slowly takes none
                    self._under_way += 1
                    job = self._workers.submit(self._answer, servable, body, end)
                    job.add_done_callback(lambda _: self._release(len(body)))
                    text = await asyncio.wrap_future(job)
            except TimeoutError:
                message = f"The request was not answered within {self._timeout_seconds:g} seconds."
                raise RequestError("DEADLINE_EXCEEDED", message) from None
            finally:
                if job is None:
                    self._held -= len(body)
            response = web.Response(text=text, content_type="application/json")
            response.enable_compression()  # where the client asks for it
            return response

    def _check_room(self) -> None:
        if self._under_way >= self._most:
            raise RequestError("RESOURCE_EXHAUSTED", "Concurrent request limit exceeded!")

    def _answer(self, servable: Servable, body: bytearray, end: float | None) -> str:
        """The JSON of an answer; in a worker thread, which ends soon after `end` where nobody waits any more."""
        signature_name, inputs, is_row = parse_request(body, servable)
        left = None if end is None else end - time.monotonic()
        outputs = self.predictor.predict(servable, signature_name, inputs, timeout=left)
        return json.dumps(format_answer(outputs, is_row), ensure_ascii=False, allow_nan=False)

    def _release(self, size: int) -> None:
        """Count a request as over; its thread calls this, which may end long after an answer that came too late."""

        def release() -> None:
            self._under_way -= 1
            self._held -= size

        with contextlib.suppress(RuntimeError):  # a loop that has ended counts no more
            self._loop.call_soon_threadsafe(release)

    async def _read(self, request: web.Request, body: bytearray) -> None:
        """Read a request into `body`; what is in it has been added to the bytes that are held.

        Raises:
            RequestError: INVALID_ARGUMENT, the body is too large or damaged; RESOURCE_EXHAUSTED, all bodies together are too large;
                DEADLINE_EXCEEDED, it is too slow; CANCELLED, the client hung up.
        """
        too_large = RequestError("INVALID_ARGUMENT", f"The request has more than {MAX_MESSAGE_BYTES} bytes.", 413)
        if (request.content_length or 0) > MAX_MESSAGE_BYTES:
            raise too_large
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.content.iter_any():
                    body += part
                    self._held += len(part)
                    if len(body) > MAX_MESSAGE_BYTES:
                        raise too_large
                    share = 1.0 if len(body) <= SMALL_BODY_BYTES else 0.75
                    if self._held > share * MAX_BODIES_BYTES:
                        raise RequestError("RESOURCE_EXHAUSTED", "The bodies of all requests are too large together.")
        except TimeoutError:
            message = f"The request did not arrive within {BODY_SECONDS:g} seconds."
            raise RequestError("DEADLINE_EXCEEDED", message) from None
        except (web.RequestPayloadError, aiohttp.ClientPayloadError) as error:
            raise RequestError("INVALID_ARGUMENT", f"The body of the request is damaged: {error}") from None
        except ConnectionError:
            raise RequestError("CANCELLED", "The client hung up.") from None

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=self.models.metrics.text(), content_type="text/plain")

    async def _metadata(self, request: web.Request) -> web.Response:
        return _proto_response(grpc_services.metadata(self._servable(request)))

    async def _status(self, request: web.Request) -> web.Response:
        given = request.match_info.get("version")
        version = None if given is None else int(given)
        if "label" in request.match_info:
            version = self._servable(request).version
        return _proto_response(self.models.status(request.match_info["name"], version))


@web.middleware
async def _cors(request: web.Request, handler) -> web.StreamResponse:
    """Lets pages of other origins read the answers, as TensorFlow Serving does."""
    if request.method != "OPTIONS":
        response = await handler(request)
    elif request.headers.get("Origin", "").startswith(("http://", "https://")):
        response = web.Response()
    else:
        response = web.json_response({"error": "Origin header is missing in CORS preflight"}, status=400)
    allowed = {"Origin": "*", "Methods": "POST, GET", "Headers": "Content-Type"}
    response.headers.update({f"Access-Control-Allow-{name}": value for name, value in allowed.items()})
    return response


def _error_response(error: RequestError) -> web.Response:
    return web.json_response({"error": str(error)}, status=error.http_status)


def _proto_response(message) -> web.Response:
    text = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return web.Response(text=text, content_type="application/json")
