# The model server with ScaNN's ops:
#   docker build -t tfrec . && docker run -p 8500:8500 -p 8501:8501 -v $PWD/export:/models/default tfrec
# An export with `--index exact` runs on the unmodified image as well:
#   docker run -p 8500:8500 -p 8501:8501 -v $PWD/export:/models/model tensorflow/serving:2.20.0
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY tfrec tfrec
COPY serving serving
RUN python -m venv /opt/tfrec && /opt/tfrec/bin/pip install --no-cache-dir .

FROM python:3.12-slim
COPY --from=build /opt/tfrec /opt/tfrec
ENV PATH=/opt/tfrec/bin:$PATH
RUN useradd --create-home server
USER server
EXPOSE 8500 8501
ENTRYPOINT ["tfrec-model-server", "--host=0.0.0.0", "--port=8500", "--rest_api_port=8501"]
CMD ["--model_name=default", "--model_base_path=/models/default"]
