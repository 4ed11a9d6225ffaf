"""`tfrec evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfrec.cli.tables import print_metrics, print_seeds

if TYPE_CHECKING:
    from tfrec.evaluation.contenders import Contender


def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...", help="Run folder; several with --as-seeds; prepared folder with --baselines-only."
        ),
    ],
    part: Annotated[str, typer.Option(help="test or validation.")] = "test",
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="What the run is compared with: popularity, recent-popularity, bigram, item-knn, content-knn, random or the "
            "folder of another run; may be repeated. All baselines but random when left out."
        ),
    ] = None,
    cutoffs: Annotated[str, typer.Option(help="Lengths of lists, such as 1,5,10,50.")] = "5,10,20",
    by: Annotated[
        list[str] | None,
        typer.Option(
            help="Also by slices: `history length`, `popularity`, or a column of the items or the users; may be repeated."
        ),
    ] = None,
    as_seeds: Annotated[
        bool, typer.Option("--as-seeds", help="The runs differ in their seeds: print mean and deviation of the model.")
    ] = False,
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
    split: Annotated[
        str | None,
        typer.Option(
            help="`last` or `time`, with --baselines-only; a run has a split of its own. See `tfrec train --help`."
        ),
    ] = None,
    test: Annotated[str | None, typer.Option(help="With --split time, see `tfrec train --help`.")] = None,
    validation: Annotated[str | None, typer.Option(help="With --split time, see `tfrec train --help`.")] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared folder of the run, where it has moved.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures to this file; `-` prints them.")
    ] = None,
) -> None:
    """Rank the whole catalogue for every user; print a run beside baselines or other runs."""
    from tfrec.data.cold_items import ColdItems
    from tfrec.data.prepared import PreparedData
    from tfrec.data.time_split import make_split
    from tfrec.evaluation.cold import evaluate_cold_items
    from tfrec.evaluation.judgement import evaluate as evaluate_data

    if split in ("test", "validation"):
        typer.echo(f"`--split {split}` is called `--part {split}` now.", err=True)
        part, split = split, None
    if (len(runs) > 1) != as_seeds:
        raise typer.BadParameter("--as-seeds takes two runs or more, and is needed for more than one.")
    if as_seeds and (baselines_only or against or by):
        raise typer.BadParameter("--as-seeds is for runs: leave out --baselines-only, --against and --by.")
    lengths = _lengths(cutoffs)
    if baselines_only:
        prepared, rules, chosen = PreparedData.open(runs[0]), tuple(target or ()), repeats or "exclude"
        held_out = make_split(prepared, split or "last", test or "", validation or "", rules)
        own = _baselines(against) if against else None
        result = evaluate_data(
            prepared, part, repeats=chosen, split=held_out, cutoffs=lengths, against=own, by=by or ()
        )
        if cold_items:
            cold = ColdItems(prepared, cold_items, rules=rules)
            result["cold_items"] = evaluate_cold_items(cold, part, repeats=chosen)
    else:
        from tfrec.training.judging import evaluate_run, judge_run, over_seeds
        from tfrec.training.run import Run

        if split or test or validation:
            raise typer.BadParameter("A run has a split of its own: leave out --split, --test and --validation.")
        run = Run.open(runs[0])
        _check_own(run, target, cold_items)
        if as_seeds:
            result = over_seeds(judge_run(run, data, part, against=runs[1:], repeats=repeats, cutoffs=lengths))
        else:
            result = evaluate_run(run, data, part, against=against or (), repeats=repeats, cutoffs=lengths, by=by or ())
    text = json.dumps(json.loads(json.dumps(result), parse_constant=lambda _: None), indent=2)  # null, not NaN
    if json_file == Path("-"):
        print(text)
        return
    if json_file is not None:
        json_file.write_text(text, encoding="utf-8")
    (print_seeds if as_seeds else print_metrics)(result)


def _lengths(cutoffs: str) -> list[int]:
    try:
        return [int(text) for text in cutoffs.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--cutoffs takes numbers such as 1,5,10. Received: {cutoffs!r}.") from None


def _baselines(names: list[str]) -> dict[str, Contender]:
    from tfrec.evaluation.contenders import BASELINES

    if unknown := [name for name in names if name not in BASELINES]:
        raise ValueError(f"`{unknown[0]}` is none of the baselines {', '.join(BASELINES)}.")
    return {name: BASELINES[name] for name in names}


def _check_own(run, target: list[str] | None, cold_items: float | None) -> None:
    """Raise for options that a run has chosen otherwise at its training."""
    if target and tuple(target) != run.targets:
        raise ValueError(
            f"`{run.folder}` was trained for {' and '.join(run.targets) or 'all events'}, and is evaluated on them: leave out "
            f"--target."
        )
    held_out = run.config.cold_items if run.config else 0.0
    if cold_items not in (None, held_out):
        raise ValueError(
            f"`{run.folder}` was trained with --cold-items {held_out:g}: new items are those that a training has not seen. "
            f"Train it with --cold-items {cold_items:g}."
        )
