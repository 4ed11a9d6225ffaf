"""TensorFlow Serving's gRPC services over loaded models."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from google.protobuf import any_pb2
from tensorflow import make_ndarray, make_tensor_proto
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tfrec_serving.servable import Models, RequestError, Servable

MAX_MESSAGE_BYTES = 64 << 20


def find(models: Models, spec: model_pb2.ModelSpec) -> Servable:
    """The servable of a model spec."""
    return models.find(spec.name, spec.version.value if spec.HasField("version") else None)


def fill_spec(spec: model_pb2.ModelSpec, servable: Servable, signature_name: str = "") -> None:
    """Say in an answer who gave it."""
    spec.name, spec.signature_name = servable.name, signature_name
    spec.version.value = servable.version


def metadata(servable: Servable) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """The signatures of a servable, as `GetModelMetadata` answers."""
    definitions = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in servable.signature_defs.items():
        definitions.signature_def[name].CopyFrom(definition)
    answer = get_model_metadata_pb2.GetModelMetadataResponse()
    packed = any_pb2.Any()
    packed.Pack(definitions)
    answer.metadata["signature_def"].CopyFrom(packed)
    fill_spec(answer.model_spec, servable)
    return answer


def status(servable: Servable) -> get_model_status_pb2.GetModelStatusResponse:
    """The state of a servable, as `GetModelStatus` answers."""
    answer = get_model_status_pb2.GetModelStatusResponse()
    answer.model_version_status.add(
        version=servable.version, state=get_model_status_pb2.ModelVersionStatus.AVAILABLE
    ).status.SetInParent()
    return answer


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """`Predict` and `GetModelMetadata`."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def Predict(self, request, context):  # noqa: N802
        try:
            servable = find(self.models, request.model_spec)
            signature_name = request.model_spec.signature_name or "serving_default"
            try:
                inputs = {name: make_ndarray(value) for name, value in request.inputs.items()}
            except (ValueError, TypeError) as error:
                raise RequestError("INVALID_ARGUMENT", f"an input is no tensor: {error}") from None
            outputs = servable.predict(signature_name, inputs, request.output_filter)
        except RequestError as error:
            context.abort(grpc.StatusCode[error.code], str(error))
        answer = predict_pb2.PredictResponse()
        fill_spec(answer.model_spec, servable, signature_name)
        for name, value in outputs.items():
            answer.outputs[name].CopyFrom(make_tensor_proto(value))
        return answer

    def GetModelMetadata(self, request, context):  # noqa: N802
        try:
            unknown = [field for field in request.metadata_field if field != "signature_def"]
            if unknown or not request.metadata_field:
                raise RequestError(
                    "INVALID_ARGUMENT",
                    f"Metadata field {unknown[0]} is not supported"
                    if unknown
                    else "GetModelMetadataRequest must specify at least one metadata_field",
                )
            return metadata(find(self.models, request.model_spec))
        except RequestError as error:
            context.abort(grpc.StatusCode[error.code], str(error))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """`GetModelStatus`."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def GetModelStatus(self, request, context):  # noqa: N802
        try:
            return status(find(self.models, request.model_spec))
        except RequestError as error:
            context.abort(grpc.StatusCode[error.code], str(error))


def start(models: Models, address: str, num_threads: int = 8) -> tuple[grpc.Server, int]:
    """A running gRPC server and its port (which matters when port 0 was asked for).

    Raises:
        RuntimeError: the port is taken.
    """
    options = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.so_reuseport", 0)]
    server = grpc.server(ThreadPoolExecutor(num_threads), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(PredictionService(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(models), server)
    port = server.add_insecure_port(address)
    server.start()
    return server, port
