"""`tfrec train` and `tfrec evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tfrec.cli.tables import out, print_metrics

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
    given = epochs or repeats or cold_items or target or weight or task or settings or mixed_precision
    given = given or preset != "default"
    if (resume or final) and given:
        raise typer.BadParameter(
            "--resume and --final go on with the config of a run; leave out --preset, --epochs, --repeats, --cold-items, --target, "
            "--weight, --task, --set and --mixed-precision."
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
    values = preset_of(preset) | parse_settings(settings or [])
    values |= {"epochs": epochs} if epochs is not None else {}
    values |= {"repeats": repeats} if repeats is not None else {}
    values |= {"cold_items": cold_items} if cold_items is not None else {}
    values |= {"targets": target} if target else {}
    values |= {"weights": weight} if weight else {}
    values |= {"task": task} if task else {}
    values |= {"precision": "bfloat16"} if mixed_precision else {}
    run = fit(Config.from_dict(values), data, out_, resume=resume, overwrite=overwrite)
    best = run.metrics
    validated = ""
    if "validation" in best:
        validated = ", validation NDCG@10 {ndcg@10:.4f}, HR@10 {hr@10:.4f}".format(**best["validation"])
    out.print(f"Wrote {out_}: best epoch {best['best_epoch']} of {best['epochs']}{validated}, {best['seconds']:.0f} s.")


def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder; or prepared folder, with --baselines-only.")],
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    baselines_only: Annotated[
        bool, typer.Option("--baselines-only", help="The baselines on a prepared folder.")
    ] = False,
    repeats: Annotated[
        str | None,
        typer.Option(
            help="`exclude` leaves the items of the history out of the ranking, `allow` does not; as the run was trained when left "
            "out, with --baselines-only exclude."
        ),
    ] = None,
    cold_items: Annotated[
        float | None,
        typer.Option(
            help="Share of the catalogue to rank as new items: that which the run was trained with, or any with --baselines-only."
        ),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(
            help="Which events are to be found, such as event_type=purchase, with --baselines-only; a run has targets of its own."
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared folder of the run, where it has moved.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file; `-` prints them.")
    ] = None,
) -> None:
    """Rank the whole catalogue for every user; print the model beside popularity, bigram and item-KNN."""
    from tfrec.data.cold_items import ColdItems
    from tfrec.data.prepared import PreparedData
    from tfrec.evaluation.cold import evaluate_cold_items
    from tfrec.evaluation.ranking import evaluate as evaluate_data

    if baselines_only:
        prepared = PreparedData.open(run)
        rules, chosen = tuple(target or ()), repeats or "exclude"
        result = evaluate_data(prepared, split, repeats=chosen, targets=rules)
        if cold_items:
            cold = ColdItems(prepared, cold_items, rules=rules)
            result["cold_items"] = evaluate_cold_items(cold, split, repeats=chosen)
    else:
        from tfrec.training.run import Run

        trained = Run.open(run)
        if target and tuple(target) != trained.targets:
            raise ValueError(
                f"`{run}` was trained for {' and '.join(trained.targets) or 'all events'}, and is evaluated on them: leave out "
                f"--target."
            )
        if trained.config and trained.config.final_epochs:
            raise ValueError(
                f"`{run}` was trained on all events, the targets too: there is nothing left to evaluate it on."
            )
        config = trained.config
        held_out = config.cold_items if config else 0.0
        if cold_items not in (None, held_out):
            raise ValueError(
                f"`{run}` was trained with --cold-items {held_out:g}: new items are those that a training has not seen. Train it "
                f"with --cold-items {cold_items:g}."
            )
        chosen = repeats or trained.repeats
        result = evaluate_data(trained.data(data), split, trained.model, repeats=chosen, targets=trained.targets)
        if config and held_out:
            cold, boost = trained.cold_items(data), config.new_item_boost
            result["cold_items"] = evaluate_cold_items(cold, split, trained.model, boost, chosen)
    if json_file == Path("-"):
        print(json.dumps(result, indent=2))
        return
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=2), encoding="utf-8")
    print_metrics(result)
