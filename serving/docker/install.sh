#!/bin/sh
# Make a virtual environment and install into it; `make` and the Dockerfile both do it this way.
#   sh install.sh FOLDER PYTHON WHAT...     WHAT as for pip: `.`, or `-e '.[dev]'`
set -eu
folder=$1 python=$2
shift 2
if command -v uv >/dev/null; then # the same packages, sooner
  uv venv --quiet --allow-existing --python "$python" "$folder"
  uv pip install --quiet --python "$folder/bin/python" "$@"
else
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
fi
"$folder/bin/tfrec" --version >/dev/null
"$folder/bin/tfrec-model-server" --help >/dev/null
