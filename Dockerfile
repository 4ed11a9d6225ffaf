# The model server with ScaNN's ops (the last stage):
#   docker build -t tfrec . && docker run -p 8500:8500 -p 8501:8501 -v $PWD/export:/models/default tfrec
# Training and everything else of the command line:
#   docker build -t tfrec-train --target train . && docker run -v $PWD:/work tfrec-train prepare log.csv --out data
# Stock TensorFlow Serving with an export of `--index exact` or `partitioned` baked in, from the folder EXPORT of this one:
#   docker build -t recommender --target stock --build-arg EXPORT=export . && docker run -p 8500:8500 -p 8501:8501 recommender
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY tfrec tfrec
COPY serving serving
RUN sh serving/docker/install.sh /opt/tfrec python3 .

FROM tensorflow/serving:2.20.0 AS stock
ARG EXPORT=export
COPY ${EXPORT} /models/default
COPY serving/config /config
ENTRYPOINT ["tensorflow_model_server", "--port=8500", "--rest_api_port=8501", "--model_name=default", "--model_base_path=/models/default"]
CMD ["--monitoring_config_file=/config/monitoring.config"]

FROM python:3.12-slim AS train
COPY --from=build /opt/tfrec /opt/tfrec
ENV PATH=/opt/tfrec/bin:$PATH
WORKDIR /work
ENTRYPOINT ["tfrec"]

FROM python:3.12-slim
COPY --from=build /opt/tfrec /opt/tfrec
ENV PATH=/opt/tfrec/bin:$PATH
USER 10001
EXPOSE 8500 8501
ENTRYPOINT ["tfrec-model-server", "--host=0.0.0.0", "--port=8500", "--rest_api_port=8501"]
CMD ["--model_name=default", "--model_base_path=/models/default"]
