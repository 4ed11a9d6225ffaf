"""TensorFlow Serving's messages for clients, without TensorFlow.

The public protos import all of TensorFlow, seconds of it. Here the few messages that a client sends and reads are built from
their fields: the same names and numbers, so the same bytes. They live in a pool of their own, beside the real ones.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tfrec_serving.ids import id_text

_KINDS = {"double": 1, "float": 2, "int64": 3, "int32": 5, "bool": 8, "string": 9, "bytes": 12}
_FIELDS = {
    "Int64Value": "value=1 int64",
    "Dim": "size=1 int64, name=2 string",
    "TensorShape": "dim=2 *Dim, unknown_rank=3 bool",
    "Tensor": "dtype=1 int32, tensor_shape=2 TensorShape, tensor_content=4 bytes, float_val=5 *float, double_val=6 *double, "
    "int_val=7 *int32, string_val=8 *bytes, int64_val=10 *int64, bool_val=11 *bool",
    "ModelSpec": "name=1 string, version=2 Int64Value, signature_name=3 string, version_label=4 string",
    "NamedTensor": "key=1 string, value=2 Tensor",
    "PredictRequest": "model_spec=1 ModelSpec, inputs=2 *NamedTensor, output_filter=3 *string",
    "PredictResponse": "outputs=1 *NamedTensor, model_spec=2 ModelSpec",
    "GetModelStatusRequest": "model_spec=1 ModelSpec",
    "Status": "error_code=1 int32, error_message=2 string",
    "ModelVersionStatus": "version=1 int64, state=2 int32, status=3 Status",
    "GetModelStatusResponse": "model_version_status=1 *ModelVersionStatus",
}
"""Fields as `name=number type`; `*` is repeated. A map travels as a list of its entries."""
AVAILABLE = 30
"""The state of a version that answers."""
MAX_LEFT_OUT = 1 << 20
"""Values of a tensor that its shape counts and its message leaves out, at most."""
_NUMPY = {1: np.float32, 2: np.float64, 3: np.int32, 9: np.int64, 10: np.bool_}
VALUES = {1: "float_val", 2: "double_val", 3: "int_val", 7: "string_val", 9: "int64_val", 10: "bool_val"}
DTYPES = {np.dtype(kind): number for number, kind in _NUMPY.items()}
"""TensorFlow's number of each dtype but strings, and above in which field its values lie."""
STRING = 7


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="tfrec_serving/messages.proto", package="tfrec_serving", syntax="proto3"
    )
    for message, fields in _FIELDS.items():
        added = file.message_type.add(name=message)
        for text in fields.split(", "):
            field, kind = text.split(" ")
            name, number = field.split("=")
            one = added.field.add(name=name, number=int(number), label=3 if kind.startswith("*") else 1)
            kind = kind.removeprefix("*")
            if kind in _KINDS:
                one.type = _KINDS[kind]  # type: ignore[assignment]
            else:
                one.type, one.type_name = 11, f".tfrec_serving.{kind}"  # type: ignore[assignment]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tfrec_serving.{n}")) for n in _FIELDS}


_CLASSES = _build()
PredictRequest, PredictResponse = _CLASSES["PredictRequest"], _CLASSES["PredictResponse"]
GetModelStatusRequest, GetModelStatusResponse = _CLASSES["GetModelStatusRequest"], _CLASSES["GetModelStatusResponse"]


def fill_tensor(tensor: Any, array: np.ndarray) -> None:
    """Write an array into a `Tensor`; bytes, and ids as UTF-8, are strings."""
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    if array.dtype.kind in "OSU":
        tensor.dtype = STRING
        tensor.string_val.extend(v if isinstance(v, bytes) else id_text(v).encode() for v in array.reshape(-1).tolist())
        return
    if array.dtype not in DTYPES:
        raise TypeError(f"An input has the dtype {array.dtype}, which no signature takes.")
    tensor.dtype, tensor.tensor_content = DTYPES[array.dtype], array.tobytes()


def read_tensor(tensor: Any) -> np.ndarray:
    """The array of a `Tensor`; strings come as an object array of bytes."""
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    kind = _NUMPY.get(tensor.dtype, object)
    if tensor.tensor_content:
        return np.frombuffer(tensor.tensor_content, kind).reshape(shape)
    values = list(getattr(tensor, VALUES[tensor.dtype]))
    missing = math.prod(shape) - len(values)  # a tail of equal values is sent once
    if missing > MAX_LEFT_OUT:
        raise ValueError(f"its shape {shape} has {missing:,} values that are not there")
    array: np.ndarray = np.empty(len(values) + missing, kind)
    array[:] = values + values[-1:] * missing
    return array.reshape(shape)
