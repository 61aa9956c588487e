"""Tables of the study, docs/study.md and docs/study/, from the cells in benchmarks/results/studies (`make docs`; used by tables.py).

Every table names a head in the same way, whatever its study called it: `attfc` is the head as it comes, `fixed` is said where the batch's own centers
pass no gradient on. Seconds are shown where all cells of a table ran on one processor with at most one cell beside them, and nowhere else.
A row of the paper's tables whose cells are missing is left out, and said.
"""

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attfc.lab.pages import FIGURES, markdown_table, spread, study_table
from attfc.lab.study import read_study, study_records
from attfc.lab.study_verdict import FEWEST_SEEDS, difference

ROOT = Path(__file__).resolve().parent.parent
STUDIES = ROOT / "benchmarks" / "results" / "studies"
QUIET_LOAD = 2.5

Record = dict[str, Any]

# Studies of `attfc study run` -> whose figures their table shows; settings in benchmarks/studies/NAME.yaml.
SPLITS = {
    **dict.fromkeys(("vectors_tune", "faces_tune", "faces_trained_tune", "synthetic_tune"), "validation"),
    **dict.fromkeys(("vectors_tail", "vectors_long", "vectors_dense", "vectors_many"), "test"),
    **dict.fromkeys(("vectors_100k", "vectors_1m", "vectors_options", "vectors_flip", "vectors_conflict"), "test"),
    **dict.fromkeys(("faces_heads", "faces_long", "faces_options", "faces_tail"), "test"),
    **dict.fromkeys(("vectors_border", "vectors_trained"), "test"),
    **dict.fromkeys(("faces_web_to_lfw", "faces_lfw_to_web", "synthetic_10k", "synthetic_30k"), "test"),
    **dict.fromkeys(
        (
            "faces_folds",
            "faces_folds_long",
            "faces_seeds",
            "faces_seeds_long",
            "faces_seeds_tail",
            "faces_seeds_web",
            "faces_flip",
        ),
        "all",
    ),
}


def records_of(name: str) -> list[Record]:
    """The cells of a study, in the order of its variants."""
    found = study_records(read_study(ROOT / "benchmarks" / "studies" / f"{name}.yaml"), STUDIES / name)
    if not found:
        raise FileNotFoundError(2, "no cells", f"benchmarks/results/studies/{name}")
    return found


def shown_name(record: Record) -> str:
    """The name of a cell's variant in the tables.

    >>> shown_name({"variant": "attfc 0.01", "overrides": ["in_batch=fixed"]})
    'attfc 0.01, fixed'
    >>> shown_name({"variant": "attfc, two-way, rate 0.05", "overrides": ["in_batch=push"]})
    'attfc, rate 0.05'
    """
    name = str(record["variant"]).replace(", two-way", "").replace(", no keys", "").replace("nobody", "attfc")
    name = name.replace("share by images", "memory 0.25").replace("ratio", "share")
    if name.startswith("attfc") and "in_batch=fixed" in record["overrides"] and not re.search("fixed|as chosen", name):
        name = re.sub(r"attfc( [\d.]+)?", r"\g<0>, fixed", name, count=1)
    return name


def compares_seconds(records: Sequence[Record]) -> bool:
    """Whether all cells ran on one processor, with at most one cell beside them."""
    processors = {record["environment"]["machine"]["processor"] for record in records}
    return len(processors) == 1 and all(record["load_average"] <= QUIET_LOAD for record in records)


def grid(name: str) -> Callable[[], str]:
    """Table of a study: every variant, and the differences to its reference."""

    def table() -> str:
        study, records = read_study(ROOT / "benchmarks" / "studies" / f"{name}.yaml"), records_of(name)
        reference = next((shown_name(each) for each in records if each["variant"] == study.reference), study.reference)
        shown = [{**record, "variant": shown_name(record)} for record in records]
        figures = FIGURES[study.world.kind]
        return study_table(shown, figures, reference, SPLITS[name], timed=compares_seconds(records))

    return table


def border(name: str, with_it: str, without: str) -> Callable[[], str]:
    """Table of a study of one option, on against off (how the names of its variants end), by how many images people have."""

    def table() -> str:
        groups = by_variant(records_of(name))
        figures = FIGURES["vectors"]
        first, title = next(iter(figures.items()))
        rows = []
        for variant, one in groups.items():
            people, _, kind = variant.rpartition(", ")
            other = groups.get(f"{people}, {without}", [])
            if kind == with_it and other:
                rates = (spread([each["figures"]["test"][first] for each in group]) for group in (other, one))
                mean = one[0]["images"] / one[0]["identities"]
                rows.append([people, f"{mean:.1f}", *rates, *(apart(one, other, figure, "test") for figure in figures)])
        columns = ["images per person", "mean", f"{title}, {without}", with_it]
        columns += [f"{with_it} less {without}: {each}" for each in figures.values()]
        return f"{markdown_table(columns, rows)}\n\n{origin([cell for group in groups.values() for cell in group])}"

    return table


def by_variant(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The sound cells of each variant, by the names of the study's file."""
    found: dict[str, list[Record]] = {}
    for record in records:
        if "failed" not in record:
            found.setdefault(record["variant"], []).append(record)
    return found


def apart(one: Sequence[Record], other: Sequence[Record], figure: str, split: str) -> str:
    """One variant less the other in points: with interval and word, or as mean and standard deviation of the seeds that both have."""
    if found := difference(one, other, figure, split):
        return found.text()
    of_one, of_other = ({cell["seed"]: cell["figures"][split].get(figure) for cell in cells} for cells in (one, other))
    both = [seed for seed in of_one if of_one[seed] is not None and of_other.get(seed) is not None]
    if not both:
        return "-"
    values = [100 * (of_one[seed] - of_other[seed]) for seed in both]
    if len(both) == 1:
        return f"{values[0]:+.1f}, one seed"
    return f"{statistics.mean(values):+.1f} ± {statistics.stdev(values):.1f}"


def origin(records: Sequence[Record]) -> str:
    """How many cells, of which commits."""
    commits = sorted({str(record["commit"])[:10] for record in records})
    return f"{len(records)} cells; commit {', '.join(commits)}."


def of(study: str, variant: str) -> list[Record]:
    """The sound cells of one variant, [] without any."""
    try:
        return by_variant(records_of(study)).get(variant, [])
    except FileNotFoundError:
        return []


# The paper's first table: studies, their variants, and how they are called there; those of a study are compared with its first.
HEADS = {
    "faces_folds": {
        "full_fc": "full classifier, six folds",
        "partial_fc 0.1": "Partial FC, 10 % of the rows",
        "attfc, as chosen": "AttFC as chosen: 117 trained centers",
        "attfc": "AttFC, no trained centers",
    },
    "faces_seeds": {
        "full_fc": "full classifier, five seeds",
        "partial_fc 0.1": "Partial FC, 10 % of the rows",
        "partial_fc 0.1, all rows move": "the same, all rows move",
        "attfc, as chosen": "AttFC as chosen: 115 trained centers",
        "attfc, trained 94": "AttFC, 94 trained centers",
        "attfc": "AttFC, no trained centers",
        "attfc, fixed": "the same without the push",
        "broadface": "BroadFace",
        "sub-centers": "sub-center ArcFace, 3 rows each",
        "prototype memory": "Prototype Memory",
        "dcq, 2,300 centers": "DCQ, 2,300 centers",
        "dcp, 400 rows": "DCP, 400 rows",
    },
}


def heads() -> str:
    """Real faces: the values of the full classifier, and how far each head is from it."""
    figures = {
        name: title for name, title in FIGURES["faces"].items() if name != "tar_at_far/0.001"
    }  # the appendix has it
    rows, shown = [], []
    for study, names in HEADS.items():
        full = of(study, next(iter(names)))
        for variant, name in names.items():
            if not (group := of(study, variant)):
                print(f"study heads: no cells of {variant} in {study}")
                continue
            values = [[each["figures"]["all"][figure] for each in group] for figure in figures]
            apart_from = [apart(group, full, figure, "all") for figure in figures]
            cells = map(spread, values) if variant == next(iter(names)) else apart_from
            rows.append([name, mebibytes(group), len(group), *cells])
            shown += group
    return f"{markdown_table(['head', 'MiB', 'seeds', *figures.values()], rows)}\n\n{origin(shown)}"


class Where(NamedTuple):
    """A row of the paper's second table: who is trained on, the study, AttFC's variants, the metric, what both classifiers tried."""

    people: str
    study: str
    attfc: tuple[str, ...]
    figure: str
    settings: tuple[str, ...] = ("",)


BALANCED, REAL, SIMULATED = "person_balanced_tar_at_far/0.01", "tar_at_far/0.01", "tar_at_far/0.0001"
FILTER = ", filter 0.3, gap 0.2"
FILTERED = f"attfc, two-way{FILTER}"
FILTERS = ("", ", filter 0.4", ", filter 0.6", FILTER)
CHOSEN, THOUSAND = "attfc, as chosen", "attfc, as chosen, 1,000 negatives"
WHERE = (  # of several variants of AttFC the first with cells; of the settings of a classifier the one with the highest mean
    Where("real, six folds", "faces_folds", (CHOSEN,), BALANCED),
    Where("real, six folds, longer", "faces_folds_long", (CHOSEN,), BALANCED),
    Where("real, long tail", "faces_seeds", (CHOSEN,), BALANCED),
    Where("real, long tail, longer", "faces_seeds_long", (CHOSEN,), BALANCED),
    Where("real, few images each", "faces_seeds_tail", (CHOSEN,), BALANCED),
    Where("real, few images each, three seeds", "faces_tail", ("attfc",), REAL),
    Where("real, few people of many images", "faces_web_to_lfw", ("attfc, two-way",), REAL),
    Where("real, 4 of 10 labels wrong", "faces_flip", (CHOSEN,), BALANCED, FILTERS),
    Where("rendered, 2 to 20 images", "synthetic_10k", (CHOSEN, "attfc, two-way"), REAL),
    Where("simulated, 1 to 6 samples", "vectors_tail", (CHOSEN,), SIMULATED),
    Where("simulated, 1 to 6, longer", "vectors_long", ("attfc, rate 0.2",), SIMULATED, ("", ", rate 0.1", ", rate 0.3")),
    Where("simulated, 1 to 6, more people", "vectors_100k", (CHOSEN, "attfc 0.1"), SIMULATED),
    Where("simulated, 2 to 20 samples", "vectors_dense", (CHOSEN,), SIMULATED),
    Where("simulated, 2 to 200 samples", "vectors_many", ("attfc, two-way, as chosen",), SIMULATED),
    Where("simulated, 4 of 10 labels wrong", "vectors_flip", (CHOSEN,), SIMULATED, FILTERS),
    Where("simulated, half under two labels", "vectors_conflict", (CHOSEN,), SIMULATED, FILTERS),
)  # fmt: skip


def worlds() -> str:
    """The same heads on all kinds of people: values of the full classifier, and how far AttFC and Partial FC are from it."""
    rows, shown = [], []
    for where in WHERE:
        split = SPLITS[where.study]

        def mean(cells: Sequence[Record], split: str = split, figure: str = where.figure) -> float:
            return statistics.mean(each["figures"][split][figure] for each in cells) if cells else -1.0

        full, partial = (
            max((of(where.study, head + setting) for setting in where.settings), key=mean)
            for head in ("full_fc", "partial_fc 0.1")
        )
        attfc = next(filter(None, (of(where.study, each) for each in where.attfc)), [])
        if not (full and attfc):
            print(f"study worlds: no cells of {where.attfc[0]} in {where.study}")
            continue
        first, setting = full[0], full[0]["variant"].removeprefix("full_fc")
        rows.append(
            [
                f"{first['identities']:,} {where.people}",
                f"{first['images'] / first['identities']:.1f}",
                shown_name(attfc[0]).removeprefix("attfc, "),
                f"{mean(full):.3f} ({METRICS[where.figure]}{setting})",
                *(apart(attfc, full, figure, split) for figure in (where.figure, "rank_one")),
                apart(partial, full, where.figure, split),
            ]
        )
        shown += full + attfc + partial
    columns = ["people", "images each", "AttFC", "full classifier", "AttFC less it", "in rank-1", "Partial FC less it"]
    return f"{markdown_table(columns, rows)}\n\n{origin(shown)}"


METRICS = {
    BALANCED: "person-balanced, 1e\u20112",
    REAL: "TAR, 1e\u20112",
    SIMULATED: "TAR, 1e\u20114",
}  # hyphens that do not break


class Part(NamedTuple):
    """A row of the paper's third table: what is changed, the study, and the variants with it and without."""

    change: str
    people: str
    study: str
    one: str
    other: str


TAIL, HALF = "simulated, 1 to 6", "simulated, 1 to 6, 5 epochs"
PARTS = (
    Part("two key passes in place of none", HALF, "vectors_options", "K = 2", "attfc"),
    Part("images in pairs: a key without a pass", HALF, "vectors_options", "pairs", "attfc"),
    Part("centers of the other images", TAIL, "vectors_tail", "attfc, others", "attfc, no keys"),
    Part("no stored centers, two key passes", HALF, "vectors_options", "K = 2, no stored centers", "K = 2"),
    Part("0.8 of the old center, not 0.4", HALF, "vectors_options", "blend 0.8", "attfc"),
    Part("the published form at momentum 0.9, not 0.999", HALF, "vectors_options", "published, momentum 0.9", "published"),
    Part("the published form at momentum 0.9, not 0.999", "real, 2 epochs", "faces_options", "published, momentum 0.9", "published"),
    Part("negatives from a container, not drawn", TAIL, "vectors_tail", "attfc, no keys, recent negatives", "attfc, no keys"),
    Part("1 % of the centers, not 10 %", HALF, "vectors_options", "ratio 0.01", "attfc"),
    Part("0.1 % of the centers, not 10 %", "simulated, 1 to 6, 100,000 people", "vectors_100k", "attfc 0.001", "attfc 0.1"),
    Part("no negatives from the batch", HALF, "vectors_options", "no in-batch negatives", "attfc"),
    Part("the push", "simulated, 2 each", "vectors_border", "2 each, push", "2 each, fixed"),
    Part("the push", "simulated, 4 each", "vectors_border", "4 each, push", "4 each, fixed"),
    Part("the push", "simulated, 8 each", "vectors_border", "8 each, push", "8 each, fixed"),
    Part("the push", "real, long tail", "faces_seeds", "attfc", "attfc, fixed"),
    Part("a center averages a tenth of an epoch", "real, long tail", "faces_seeds", "attfc, memory 0.1", "attfc"),
    Part("a center averages a tenth of an epoch", "simulated, 2 to 200", "vectors_many", "attfc, two-way, memory 0.1", "attfc, two-way"),
    Part("a tenth of the people, not 1,000, as negatives", "real, six folds", "faces_folds", CHOSEN, THOUSAND),
    Part("a tenth of the people, not 1,000, as negatives", "simulated, 2 to 200", "vectors_many", "attfc, two-way, as chosen", THOUSAND),
    Part("trained from 7 images on, not from 20", "real, long tail, longer", "faces_seeds_long", "attfc, as chosen, 202 trained", CHOSEN),
    Part("trained from 8 images on, not from 20", "real, few images each", "faces_seeds_tail", "attfc, as chosen, 91 trained", CHOSEN),
    Part("115 trained centers", "real, long tail", "faces_seeds", "attfc, memory 0.1, trained 115", "attfc, memory 0.1"),
    Part("the filter of wrong labels", "simulated, clean labels", "vectors_dense", FILTERED, "attfc, two-way"),
    Part("the filter of wrong labels", "simulated, 4 of 10 labels wrong", "vectors_flip", FILTERED, "attfc, two-way"),
    Part("the filter of wrong labels", "simulated, half under two labels", "vectors_conflict", FILTERED, "attfc, two-way"),
)  # fmt: skip


def parts() -> str:
    """What each part of AttFC is worth: the variant with the change less the one without it."""
    rows, shown = [], []
    for part in PARTS:
        one, other = (of(part.study, each) for each in (part.one, part.other))
        if not (one and other):
            print(f"study parts: no cells of {part.one} in {part.study}")
            continue
        split = SPLITS[part.study]
        figure = SIMULATED if one[0]["world"]["kind"] == "vectors" else BALANCED
        figure = figure if figure in one[0]["figures"][split] else REAL
        differences = (apart(one, other, each, split) for each in (figure, "rank_one"))
        rows.append([part.change, part.people, METRICS[figure], *differences])
        shown += one + other
    return f"{markdown_table(['change', 'people', 'metric', 'gained, points', 'in rank-1'], rows)}\n\n{origin(shown)}"


def mebibytes(group: Sequence[Record]) -> str:
    """Memory of the head."""
    return f"{statistics.mean(record['head_bytes'] for record in group) / 2**20:.1f}"


def cost() -> str:
    """Real faces over seeds: memory and time of each head beside what it reaches."""
    measured = json.loads((STUDIES.parent / "study_seconds.json").read_text(encoding="utf-8"))
    groups, rows = by_variant(records_of(measured["config"]["study"])), []
    for row in measured["results"]:
        if len(group := groups.get(row["variant"], [])) >= FEWEST_SEEDS:
            rates = (spread([each["figures"]["all"][figure] for each in group]) for figure in (BALANCED, "rank_one"))
            rows.append([shown_name(group[0]), mebibytes(group), f"{row['times_reference']:.2f}", *rates, len(group)])
    columns = ["variant", "head, MiB", "a step, full_fc = 1", METRICS[BALANCED], "rank-1", "seeds"]
    made = measured["environment"]
    where = f"`benchmarks/results/study_seconds.json`: {made['processor']}, one thread, processor time, commit {made['commit'][:10]}."
    return f"{markdown_table(columns, rows)}\n\n{where} {origin([cell for group in groups.values() for cell in group])}"


TABLES: dict[str, Callable[[], str]] = {
    **{f"study {name}": grid(name) for name in SPLITS},
    "study vectors_border": border("vectors_border", "push", "fixed"),
    "study vectors_trained": border("vectors_trained", "trained", "made"),
    "study heads": heads,
    "study worlds": worlds,
    "study parts": parts,
    "study cost": cost,
}
