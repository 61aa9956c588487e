"""What `attfc train PATH` chooses by itself: one table, a function of the data, the machine and what was typed.

The data decide what is learnt; the machine decides only how a step is cut and where the centers lie (exceptions: a processor takes a small network, a
card below 14 GiB no r100). No network is run and nothing is timed; total memory is read, not free memory, so equal machines choose equally.
Every row can be overridden, and an override moves only the rows that depend on it. docs/recipes.md has the table and what was measured of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from attfc.config.kinds import HOLDING_A_BATCH, PARTS, default_kind, model_of
from attfc.config.profiles import usual_negatives, usual_scale
from attfc.config.short_names import short_name

__all__ = ["FREQUENT", "KEPT_SHARE", "Choice", "Data", "Machine", "choose"]

FREQUENT = 20  # images, from which on a trained center is better than one made of embeddings
KEPT_SHARE, FEWEST_WITH_PAIRS = 0.1, 20  # the second: people of two or more images, so that anybody is kept aside


@dataclass(frozen=True)
class Data:
    """The training set without the people kept aside, its `frequent` people, and those kept; `with_pairs`: of the whole set, two or more images."""

    identities: int
    images: int
    with_pairs: int
    kept_people: int = 0
    kept_images: int = 0
    frequent: int = 0


@dataclass(frozen=True)
class Machine:
    """The device: "cpu", "cuda" or another accelerator; its total memory in GiB (the smallest of several), the host's, and how many ranks."""

    device: str
    memory_gib: float
    host_gib: float
    ranks: int = 1

    @property
    def card(self) -> int:
        """Return whole GiB of a card that is used as one; 0: as a processor (below 6 GiB, or an accelerator that no test has run)."""
        return round(self.memory_gib) if self.device == "cuda" and round(self.memory_gib) >= 6 else 0


@dataclass(frozen=True)
class Choice:
    """One row: what is chosen, its values by option, how it reads, and why."""

    what: str
    values: Mapping[str, Any]
    shown: str
    why: str


def choose(data: Data, machine: Machine, given: Mapping[str, Any]) -> list[Choice]:
    """Return the rows of the table; `given`: what was typed or a preset says, by option, taken as it is, such as {"batch_size": 64}."""
    card, images, people = machine.card, data.images, data.identities
    mean, rows = images / max(people, 1), [_kept(data, given)]

    def row(what: str, values: Mapping[str, Any], why: str, text: str = "{}") -> list[Any]:
        taken = {key: given.get(key, value) for key, value in values.items()}
        why = "as given" if all(key in given for key in values) else f"{why} ({short_name(next(iter(values)))}=)"
        rows.append(Choice(what, taken, text.format(*taken.values()), why))
        return list(taken.values())

    if not card:
        name, limit = ("r6_tiny", "fewer than 5,000 images") if images < 5_000 else ("r10_tiny", "5,000 images or more")
        why = f"small, for a processor; {limit}"
    elif images < 4_000_000:
        name, limit = ("r18", "100,000") if images < 100_000 else ("r50", "4 million")
        why = f"fewer than {limit} images"
    else:
        name, why = "r100" if card >= 14 else "r50", f"4 million images or more, {card} GiB"
    (network,) = row("network", {"backbone.name": name}, why)
    if starts := given.get("start_from") is not None:
        rows[-1] = replace(rows[-1], why=f"that of start_from={given['start_from']}")
    small = str(network).endswith("_tiny")
    per_step = 512 if card and images >= 100_000 else 2 ** int(math.log2(min(max(images / 16, 16), 128)))
    most = (512 if card >= 48 else 256 if card >= 14 and network != "r100" else 128) * machine.ranks
    accumulation = int(given.get("optimizer.accumulation", 1 if "batch_size" in given else math.ceil(per_step / most)))
    whole = math.ceil(max(per_step // accumulation, 2 * machine.ranks) / machine.ranks) * machine.ranks
    why = f"{images:,} images" if card and images >= 100_000 else f"at most a 16th of {images:,} images, but 16 to 128"
    why += f"; passes of {most} fit {card} GiB" if card and per_step > most else ""
    values = {"batch_size": whole, "optimizer.accumulation": accumulation}
    batch, accumulation = row("images per step", values, why, "{} x {}" if accumulation > 1 else "{}")
    per_step = int(batch) * int(accumulation)
    base, full = 128 if small else 512, 0.001 if given.get("optimizer.name") == "adamw" else 0.1
    why = f"{full:g} for {base} images per step, in proportion" + ", a tenth with start_from" * starts
    row("learning rate", {"optimizer.learning_rate": full * per_step / base / (10 if starts else 1)}, why, "{:g}")
    epochs = (40 if images < 100_000 else 20) if card else min(max(math.ceil(150_000 / max(images, 1)), 1), 25)
    why = "40 below 100,000 images, else 20" if card else "passes over all images: until 150,000 were shown, at most 25"
    why += ", a quarter with start_from" * starts
    (epochs,) = row("epochs", {"schedule.epochs": epochs / 4 if starts else epochs}, why, "{:g}")
    run = min(float(epochs), (given.get("schedule.max_steps") or math.inf) * per_step / images)
    ends = f"; max_steps={given.get('schedule.max_steps')} ends it after {run:.3g}" if run < epochs else ""
    rows[-1] = replace(rows[-1], why=rows[-1].why + ends)
    warmup = {"schedule.warmup_epochs": min(1.0 if card else 0.5, run / 10)}
    why = f"the learning rate rises for {'an epoch' if card else 'half an epoch'}, at most a tenth of the run"
    row("warm-up", warmup, why, "{:.3g} epochs")
    _head(data, machine, given, mean, int(batch), row)
    kind, margin = given.get("margin.kind"), {"margin.kind": "cosface", "margin.scale": usual_scale(people)}
    margin |= {} if kind == "combined" else {"margin.margin": 0.5 if kind == "arcface" else 0.4}
    why = "those of the loss; scale 32 below 50,000 people, else 64"
    row("scale, margin", margin, why, ", ".join(["{} {:g}", *["{:g}"] * (len(margin) - 2)]))
    return rows


def _head(data: Data, machine: Machine, given: Mapping[str, Any], mean: float, batch: int, row: Any) -> None:
    """Add the rows of the head: who gives the negatives, where the centers lie, and what the batch's own centers do."""
    people, why = data.identities, "it pulls faces to their person's center, a mean of embeddings"
    if people <= 200_000 and mean >= 6 and people * 6144 / 2**30 <= (machine.card or machine.host_gib) / 4:
        why += f"; full_fc is worth a try too, which trains the centers: {mean:.0f} images per person, and they fit"
    (head,) = row("head", {"head.kind": default_kind("head")}, why)
    section = "negatives" if "negatives" in PARTS.get(head, ()) else "head"
    if section == "head" and "count" not in model_of("head", head).model_fields:
        return
    bank = given.get("negatives.kind", default_kind("negatives")) if section == "negatives" else head
    drawn = bank not in HOLDING_A_BATCH
    if f"{section}.share" not in given:
        count = max(usual_negatives(people), 0 if drawn else batch)
        few, many = "everybody, since they are few", "a tenth of the people, at least 200, at most 20,000"
        why = f"centers of others, from which a face is pushed away: {few if count == people else many}"
        row("negatives", {f"{section}.count": count}, why, "{:,} per step")
    if not drawn:
        return
    push = "push" if mean >= 4 and given.get("center.kind") != "key_attention" else "fixed"
    why = f"{mean:.1f} images per person; from 4 on, people of one batch also push each other away"
    row("batch's own centers", {"in_batch": push}, why)
    center, given_centers = given.get("center.kind", default_kind("center")), given.get("teacher.centers") is not None
    blended = center == "own_embedding" and not given_centers
    if bank == "center_table" and blended and data.frequent:
        trained = min(data.frequent, max(1000, people // 6), 20_000)
        why = f"{data.frequent:,} people have {FREQUENT} or more images; trained centers are better for them, 6,144 bytes each"
        row("trained centers", {"negatives.trained": trained}, why, "{:,}")
    if blended:
        why = "a center is the mean of what its person's images gave in this time, at least the last two or three; older ones fade"
        row("centers average", {"center.memory": 0.1}, why, "last {:g} epochs")
    if center == "own_embedding" and given.get("head.filter_above", 0) is not None:
        why = "from the second epoch on, if a tenth fit another person's center so much better than their own, these images are left out"
        row("wrong labels", {"head.filter_above": 0.3, "head.filter_gap": 0.2}, why, "above {:g}, gap {}")
    of_images = center == "other_images"
    size = (data.images * 1024 + people * 2052 if of_images else people * 1024) / 2**30
    place = "device" if size <= machine.card / 10 else "host" if size <= machine.host_gib / 4 else "file"
    on_disk = given.get("negatives.place", place) == "file"
    values = {"negatives.place": place, **({"negatives.folder": given.get("output", "runs")} if on_disk else {})}
    why = "1,024 bytes per image, 2,052 per person" if of_images else "1,024 bytes per person"
    why = f"where they are kept; {why}: {max(size * 1024, 0.1):,.1f} MiB"
    row("memory of images" if of_images else "table of centers", values, why, " in ".join(["{}"] * len(values)))


def _kept(data: Data, given: Mapping[str, Any]) -> Choice:
    """Who is kept aside for the evaluation."""
    if given.get("eval.root") is not None:
        return Choice("evaluation", {"eval.share": 0.0}, str(given["eval.root"]), "as given")
    share, people = float(given.get("eval.share", KEPT_SHARE)), f"{data.with_pairs:,} people have two or more images"
    if data.kept_people:
        by_rule = {round(share * data.with_pairs): f"{share:.0%} of them", 8: "at least 8", 1000: "at most 1,000"}
        how = by_rule.get(data.kept_people, "at most a fifth of all images")
        why = f"never trained on: their {data.kept_images:,} images judge the model; {people}; {how} (eval.share=)"
        if data.kept_people < FEWEST_WITH_PAIRS:
            why += f"; a sound verdict takes {FEWEST_WITH_PAIRS} people: give others (eval.root=)"
        return Choice("kept aside", {"eval.share": share}, f"{data.kept_people:,} people", why)
    if not data.with_pairs:
        people = "nobody has two or more images, from which a model learns what one person looks like"
    why = "as given" if share == 0 else f"{people}, {FEWEST_WITH_PAIRS} are needed; give eval.root=OTHER_PEOPLE"
    return Choice("kept aside", {"eval.share": share}, "nobody", f"no evaluation: {why}")
