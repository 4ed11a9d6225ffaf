"""`tfrec report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfrec.cli.tables import out


def report(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    out_: Annotated[Path, typer.Option("--out", help="The page to write, one file.")] = Path("report.html"),
    against: Annotated[
        list[str] | None,
        typer.Option(help="A baseline or the folder of another run, as for `tfrec evaluate`; may be repeated."),
    ] = None,
    part: Annotated[str, typer.Option(help="test or validation.")] = "test",
    data: Annotated[Path | None, typer.Option(help="Prepared folder of the run, where it has moved.")] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="Write item vectors for TensorBoard's projector to this folder instead.")
    ] = None,
) -> None:
    """Write what a run can do as one page, to look at, to print and to send."""
    if embeddings is not None:
        from tfrec.report.projector import write_projector

        out.print(f"Wrote {write_projector(run, embeddings)}: tensorboard --logdir {embeddings}", soft_wrap=True)
        return
    from tfrec.report.page import write_report

    page = write_report(run, out_, data=data, part=part, against=against or ())
    out.print(f"Wrote {page}: open it in a browser.", soft_wrap=True)
