"""`tfrec train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfrec.cli.tables import out

PRESET_HELP = "A well-known design: default, large, sasrec, gsasrec, esasrec, hstu or narm; --set has the last word."


def train(
    data: Annotated[Path | None, typer.Argument(help="Prepared folder; not needed with --resume and --final.")] = None,
    out_: Annotated[Path, typer.Option("--out", help="Run folder.")] = ...,  # type: ignore[assignment]
    preset: Annotated[str, typer.Option(help=PRESET_HELP)] = "default",
    epochs: Annotated[int | None, typer.Option(help="Number of epochs; by the size of the data when left out.")] = None,
    repeats: Annotated[
        str | None,
        typer.Option(
            help="`allow` learns to recommend items of the history again; `exclude`, the default, never does."
        ),
    ] = None,
    cold_items: Annotated[
        float | None,
        typer.Option(
            help="Share of the catalogue that is held out with all its events, for `evaluate` to rank as new items."
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Events to recommend for, such as event_type=purchase,cart or rating>=3; may be repeated: all must hold. The "
            "others stay in the history."
        ),
    ] = None,
    weight: Annotated[
        list[str] | None,
        typer.Option(
            help="How much an event counts in training: a column of numbers, or event_type:purchase=3,click=1; may be repeated."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="What is held out: `last`, the last two events of each user, the default; `time`, the newest events."
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="With --split time, the test part: 7d, a date such as 2024-05-01, or a share such as 0.1."),
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="The same for the time before the test part; as --test when left out.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="A column of events, such as rating or event_type, that a second head learns to predict for an item."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="name=value: any field of the config; may be repeated.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished epoch.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run folder where it exists.")] = False,
    mixed_precision: Annotated[bool, typer.Option("--mixed-precision", help="Compute in bfloat16.")] = False,
    final: Annotated[
        Path | None, typer.Option("--final", help="Refit this run on all events, for the epochs its validation chose.")
    ] = None,
    moved: Annotated[
        Path | None, typer.Option("--data", help="Prepared folder of --resume or --final, where it has moved.")
    ] = None,
) -> None:
    """Train a model; keep the weights with the best validation NDCG@10."""
    from tfrec.training.config import Config
    from tfrec.training.fit import final_config
    from tfrec.training.fit import train as fit
    from tfrec.training.presets import parse_settings
    from tfrec.training.presets import preset as preset_of
    from tfrec.training.run import Run

    data = data or moved
    named = {
        "epochs": epochs,
        "repeats": repeats,
        "cold_items": cold_items,
        "targets": target,
        "weights": weight,
        "split": split,
        "test": test,
        "validation": validation,
        "task": task,
        "precision": "bfloat16" if mixed_precision else None,
    }
    named = {name: value for name, value in named.items() if value not in (None, [])}
    if (resume or final) and (named or settings or preset != "default"):
        raise typer.BadParameter(
            "--resume and --final go on with the config of a run; leave out --preset, --epochs, --repeats, --cold-items, --target, "
            "--weight, --split, --test, --validation, --task, --set and --mixed-precision."
        )
    if data is None and not (resume or final):
        raise typer.BadParameter("Pass a prepared folder, --resume or --final RUN.")
    if final:
        first = Run.open(final)
        if first.settings.own:
            raise ValueError(f"`{final}` has a model or a loss of your own: refit it in Python, with `tfrec.train`.")
        done = fit(final_config(first), first.data(data), out_, overwrite=overwrite).metrics
        out.print(f"Wrote {out_}: trained on all events, {done['epochs']} epochs, {done['seconds']:.0f} s.")
        return
    values = preset_of(preset) | parse_settings(settings or []) | named
    run = fit(Config.from_dict(values), data, out_, resume=resume, overwrite=overwrite)
    best = run.metrics
    validated = ""
    if "validation" in best:
        validated = ", validation NDCG@10 {ndcg@10:.4f}, HR@10 {hr@10:.4f}".format(**best["validation"])
    out.print(f"Wrote {out_}: best epoch {best['best_epoch']} of {best['epochs']}{validated}, {best['seconds']:.0f} s.")
