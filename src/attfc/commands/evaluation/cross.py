"""`attfc compare NEW OLD PATH --cross`: probes of a new model in the gallery of an old one, at the old threshold."""

from pathlib import Path
from typing import TYPE_CHECKING

from attfc.commands.common import Table, out, print_table, progress_bar, write_json
from attfc.commands.evaluation.options import EvaluationOptions
from attfc.commands.evaluation.subject import open_subject
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.evaluation.bootstrap import FigurePath, Interval

__all__ = ["compare_cross"]


def compare_cross(
    new: Path, old: Path, words: list[str], asked: EvaluationOptions, resamples: int, json_file: Path | None
) -> None:
    """Print how new probes do in the old gallery, beside old in old and new in new, and the differences."""
    from attfc.evaluation.bootstrap import check_resampling, nested
    from attfc.evaluation.cross import DIFFERENCES, differences, evaluate_cross
    from attfc.evaluation.protocols.protocol import one_path

    check_resampling(resamples, asked.confidence)
    for model in (new, old):
        if model.suffix == ".npz":
            raise UserError(f"{model} is a saved result, but --cross embeds with both models: name the models")
    if asked.pairs or asked.groups:
        raise UserError("--pairs and --groups have no effect with --cross: leave them out")
    path = one_path("compare --cross", words, "the people to search: an image folder or any other store")
    subjects = [open_subject(model, asked)[0] for model in (new, old)]
    opened = [subject.open_path(path) for subject in subjects]
    with progress_bar("faces") as bar:
        found = evaluate_cross(
            subjects[0].embedder,
            subjects[1].embedder,
            opened[0][0],
            far=(asked.fars or (0.01,))[0],
            seed=asked.seed,
            broken_limit=asked.broken_limit,
            progress=bar,
        )
    drawn = found.resampled(resamples, asked.confidence, asked.seed)
    each = {way: {path: one.interval(path) for path, one in several.items()} for way, several in drawn.items()}
    apart = {f"{one} - {other}": differences(drawn, one, other) for one, other in DIFFERENCES}
    out.print(f"new: {new}\nold: {old}\nprobes x gallery, in %:")
    _print(each)
    _print(apart, signed=True)
    rates = ", ".join(f"{way} {100 * rate:.2f} %" for way, rate in found.far_at_threshold.items())
    out.print(f"FAR at the old threshold {found.threshold:.4f}, which gives old x old {100 * found.far:g} %: {rates}")
    out.print(
        f"[a, b]: {100 * asked.confidence:g} % interval, {resamples:,} bootstrap resamples of identities, the same for all; "
        "* the interval excludes 0"
    )
    warnings = [
        (name, shared.to_dict().get("warning")) for name, (_, shared) in zip(("new", "old"), opened, strict=True)
    ]
    notes = [*(f"{name}: {warning}" for name, warning in warnings if warning), *found.notes]
    for note in notes:
        out.print(f"note: {note}")

    def plain(figures: "dict[FigurePath, Interval]") -> dict[str, object]:
        return {
            "figures": {" ".join(path): interval.value for path, interval in figures.items()},
            "intervals": nested(figures),
        }

    write_json(
        json_file,
        {
            "new": str(new),
            "old": str(old),
            "path": path,
            "far": found.far,
            "old_threshold": found.threshold,
            "far_at_old_threshold": dict(found.far_at_threshold),
            **found.counts,
            "ways": {way: plain(figures) for way, figures in each.items()},
            "differences": {title: plain(figures) for title, figures in apart.items()},
            "confidence": asked.confidence,
            "resamples": resamples,
            "seed": asked.seed,
            "notes": notes,
        },
    )


def _print(columns: "dict[str, dict[FigurePath, Interval]]", signed: bool = False) -> None:
    """Print a table: a line per figure, a column per way or difference."""

    def cell(interval: "Interval") -> str:
        low, high = interval.plain() or (0.0, 0.0)
        sign = "+" if signed and interval.value >= 0 else ""
        return sign + interval.text(1, percent=True) + " *" * (signed and (low > 0 or high < 0))

    from attfc.evaluation.bootstrap import in_words

    paths = next(iter(columns.values()))
    rows = [(in_words(path), *(cell(figures[path]) for figures in columns.values())) for path in paths]
    print_table(Table(("", *columns), rows))
