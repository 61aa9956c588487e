"""The figures of README and of the study's comparison at equal memory and time, from the cells of studies and nothing else (`make docs`).

docs/figures/readme.svg: along training. docs/figures/pareto_*.svg: each point a variant, mean and standard deviation over its seeds. Seconds are
drawn only of cells that ran undisturbed on one kind of machine. A title says what the cells say: other cells, another title.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from attfc.evaluation.report.drawing import MOST_SERIES
from attfc.lab.pages import Panel, curve_of, end_of, in_1_2_5, panels_figure, split_of, undisturbed
from attfc.lab.study_verdict import FEWEST_SEEDS, difference

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "benchmarks" / "results" / "studies"

Record = dict[str, Any]
Cells = dict[str, list[Record]]
Series = dict[str, tuple[str, ...]]
"""Name of a series -> its variants, in the order of their memory or time."""


def cells_of(study: str) -> Cells:
    """Return the sound cells of a study by variant."""
    found: Cells = {}
    for line in (STUDIES / study / "cells.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "failed" not in record:
            found.setdefault(record["variant"], []).append(record)
    return found


def line_of(
    groups: list[list[Record]], figure: str, seconds: bool = False
) -> tuple[list[float], list[float], list[float]]:
    """Return x (memory of the head in MiB, or undisturbed seconds of training), the figure in percent and its spread of each group."""
    xs, rates, spreads = map(list, zip(*(end_of(group, figure, split_of(group)) for group in groups), strict=True))
    if seconds:
        xs = [statistics.mean(record["seconds"] for record in undisturbed(group)) for group in groups]
    return xs, rates, spreads


def standing(rates: dict[str, float]) -> str:
    """Return how AttFC stands among series, by their rates in percent.

    >>> standing({"AttFC": 63.2, "full classifier": 48.9}), standing({"AttFC": 40.0, "full classifier": 48.9})
    ('AttFC is best', 'AttFC is 9 points below full classifier')
    """
    best = max(rates, key=rates.__getitem__)
    return "AttFC is best" if best == "AttFC" else f"AttFC is {rates[best] - rates['AttFC']:.0f} points below {best}"


MANY: Series = {
    "AttFC": ("attfc 0.001", "attfc 0.01", "attfc 0.1"),
    "full classifier": ("full_fc",),
    "Partial FC": ("partial_fc 0.001", "partial_fc 0.01", "partial_fc 0.1"),
}
TYPICAL = "attfc 0.01"
PEOPLE = "100,000 simulated people of 1 to 6 samples"


def many_people(cells: Cells) -> str:
    """Return the figure of 100,000 people of 1 to 6 samples: one rate against memory and against seconds."""
    figure, title = "tar_at_far/0.0001", "TAR at FAR 1e-4, %"
    groups = {name: [cells[variant] for variant in variants] for name, variants in MANY.items()}
    in_memory, in_time = ({name: line_of(of, figure, timed) for name, of in groups.items()} for timed in (False, True))
    panels = [
        Panel("memory of the head, MiB", title, in_memory, in_1_2_5),
        Panel("seconds of training", title, in_time, in_1_2_5),
    ]
    shares = [
        line_of([cells["full_fc"]], figure, timed)[0][0] / line_of([cells[TYPICAL]], figure, timed)[0][0]
        for timed in (False, True)
    ]
    text = standing({name: max(line[1]) for name, line in in_memory.items()})
    below = f"{PEOPLE}. AttFC and Partial FC with 0.1, 1 and 10 % of the rows; compared at 1 %. Seconds on one undisturbed machine."
    claim = f"Few images per person: {text}, in 1/{shares[0]:.0f} of the memory and 1/{shares[1]:.0f} of the time"
    return panels_figure([*MANY], panels, claim, below)


LINES = {
    "AttFC": TYPICAL,
    "full classifier": "full_fc",
    "Partial FC, 10 %": "partial_fc 0.1",
    "Partial FC, 1 %": "partial_fc 0.01",
}


def readme(cells: Cells) -> str:
    """Return README's figure: the same people along training."""
    figure, lines, memory = "tar_at_far/0.0001", {}, {}
    for name, variant in LINES.items():
        steps, rates = curve_of(cells[variant], figure, "step")
        held = end_of(cells[variant], figure, split_of(cells[variant]))[0]
        label = f"{name} ({held:.0f} MiB)"
        lines[label], memory[name] = ([4 * step / cells[variant][0]["steps"] for step in steps], rates, []), held
    panel = Panel("epochs of training", "recognized, %", lines, lambda axes: axes.set_ylim(bottom=0))
    text = standing({name: line[1][-1] for name, line in zip(LINES, lines.values(), strict=True)})
    title = f"Few images per person: {text}, in 1/{memory['full classifier'] / memory['AttFC']:.0f} of the memory"
    below = f"Pairs of one person that are recognized, while 1 in 10,000 pairs of strangers passes. {PEOPLE}."
    return panels_figure([*lines], [panel], title, below)


FACES: Series = {
    "AttFC": ("attfc", "attfc, trained 94", "attfc, as chosen", "attfc, trained 262"),
    "full classifier": ("full_fc",),
    "Partial FC, 10 %": ("partial_fc 0.1",),
    "DCQ": ("dcq, 2,300 centers",),
    "Prototype Memory": ("prototype memory",),
}
CHOSEN = ("attfc, as chosen", "attfc, trained 94")
WORDS = {
    "ahead": "AttFC is ahead of the full classifier",
    "behind": "AttFC is behind the full classifier",
    "level": "AttFC and the full classifier are level",
    "open": "no difference between AttFC and the full classifier is shown",
}


def faces(cells: Cells) -> str:
    """Return the figure of real faces: TAR and rank-1 against memory, of variants with enough seeds for an interval."""
    known = {variant: group for variant, group in cells.items() if len(group) >= FEWEST_SEEDS}
    groups = {
        name: found for name, of in FACES.items() if (found := [known[variant] for variant in of if variant in known])
    }
    names = [*groups][:MOST_SERIES]
    panels = []
    for figure, title in (("person_balanced_tar_at_far/0.01", "TAR at FAR 1e-2, %"), ("rank_one", "rank-1, %")):
        lines = {
            name: line_of(sorted(groups[name], key=lambda group: group[0]["head_bytes"]), figure) for name in names
        }
        panels.append(Panel("memory of the head, MiB", title, lines, in_1_2_5))
    chosen, full = next(known[variant] for variant in CHOSEN if variant in known), known["full_fc"]
    found = difference(chosen, full, "person_balanced_tar_at_far/0.01", split_of(chosen))
    share = full[0]["head_bytes"] / chosen[0]["head_bytes"]
    text = WORDS["open" if found is None else found.word]
    points = "" if found is None else f" (TAR {found.text().rpartition(' ')[0]} points)"
    below = f"{chosen[0]['identities']:,} people, {len(full)} seeds; TAR weighs each person alike. Compared: {chosen[0]['variant']}."
    return panels_figure(names, panels, f"Real faces: {text}{points}, at 1/{share:.0f} of the memory", below)


def main() -> None:
    """Write the figures."""
    many = cells_of("vectors_100k")
    drawn = {
        "readme": readme(many),
        "pareto_many_people": many_people(many),
        "pareto_faces": faces(cells_of("faces_seeds")),
    }
    for name, text in drawn.items():
        (ROOT / "docs" / "figures" / f"{name}.svg").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
