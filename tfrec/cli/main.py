"""The command line: parse, call one function, print."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer
from rich.console import Console

from tfrec.cli.data import prepare
from tfrec.cli.demo import demo
from tfrec.cli.deploy import check, export, export_embeddings, lite, refresh
from tfrec.cli.evaluation import evaluate
from tfrec.cli.explain import explain
from tfrec.cli.report import report
from tfrec.cli.serve import bench_serve, recommend, recommend_all, serve
from tfrec.cli.training import train
from tfrec.version import __version__

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="From an interaction log to a sequential recommender: prepare, train, evaluate, report, export, serve, lite.",
)
index_app = typer.Typer(no_args_is_help=True, help="Work on the index of an export.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")
app.add_typer(index_app, name="index")
app.add_typer(bench_app, name="bench")
for command in (
    prepare,
    train,
    evaluate,
    report,
    export,
    check,
    lite,
    serve,
    recommend,
    recommend_all,
    explain,
    export_embeddings,
    demo,
):
    app.command()(command)
index_app.command()(refresh)
bench_app.command("serve")(bench_serve)


def main() -> None:
    """Run the command line. An error that a user can mend is one sentence on standard error and exit code 2."""
    try:
        app()
    except (ValueError, OSError, ImportError) as error:
        fail(str(error))
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("tfrec", "tfrec_serving"):
            raise
        fail(str(error))


def fail(message: str) -> None:
    """End with an error message."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[bold red]error:[/] {message.replace('[', chr(92) + '[')}"
    )
    sys.exit(2)


@app.callback(invoke_without_command=True)
def _before(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand not in (None, "prepare") and "--help" not in sys.argv:
        _quiet_tensorflow()


def _quiet_tensorflow() -> None:
    """Keep TensorFlow's remarks (XLA compiled a cluster, a cost was not predicted) off the terminal, errors not.

    They come through absl's C++ log, which reads no environment variable and has no Python call.
    """
    import tensorflow as tf

    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(str(Path(tf.sysconfig.get_lib()) / "libtensorflow_framework.so.2"))
        library._ZN4absl12lts_2025012714SetMinLogLevelENS0_18LogSeverityAtLeastE(2)  # absl::SetMinLogLevel(kError)


if __name__ == "__main__":
    main()
