"""What follows from plans: whether the head that was asked about fits, what to change where it hardly does, which head is the better choice.

Arithmetic on the plans of `attfc.plan` and sentences; nothing is measured here.
"""

from collections.abc import Sequence

from attfc.plan import Plan

__all__ = ["advice", "answer", "way_to_save"]

SPARE = 0.1  # of the memory: what kernels' workspace and fragmentation, which no plan sees, may well take
QUICKER = 0.95  # of a step's seconds: two measured times closer than this are alike


def answer(plans: Sequence[Plan], asked: str, memory_bytes: float) -> list[str]:
    """Say whether the head asked about fits in the memory, which head takes less time, and what to change where it is tight.

    Args:
        plans: of all heads.
        asked: `head` of the one that the configuration has.
        memory_bytes: the budget.
    """
    mine = next(plan for plan in plans if plan.head == asked)
    of_memory = f"{100 * mine.peak / memory_bytes:.0f} % of the memory"
    seconds = "" if mine.step_seconds is None else f", {mine.step_seconds:.3g} s per step"
    if mine.peak > memory_bytes:
        return [f"yours ({asked}): does not fit, {of_memory}{seconds}. {way_to_save(mine)}."]
    lines = [f"yours ({asked}): fits, {of_memory}{seconds}"]
    quicker = [
        plan
        for plan in plans
        if plan.peak <= memory_bytes
        and None not in (plan.step_seconds, mine.step_seconds)
        and plan.step_seconds < QUICKER * mine.step_seconds  # type: ignore[operator]
    ]
    if quicker:
        best = min(quicker, key=lambda plan: plan.step_seconds or 0.0)
        lines.append(
            f"faster: {best.head}, {100 * best.peak / memory_bytes:.0f} % of the memory, {best.step_seconds:.3g} s per step"
        )
    spare = 1 - mine.peak / memory_bytes
    if spare < SPARE:
        lines.append(
            f"warning: {100 * spare:.0f} % of the memory is spare, and workspace inside kernels and fragmentation are not counted: it may "
            f"not fit. {way_to_save(mine)}."
        )
    return lines


def way_to_save(plan: Plan) -> str:
    """Say what takes most of a plan's memory, and what makes that smaller."""
    network = 2 * plan.parameters  # it and its key encoder, its gradients, its momentum
    head = plan.rows + max(plan.gradients - plan.parameters / 2, 0) + max(plan.optimizer - plan.parameters / 2, 0)
    if plan.activations >= max(network, head):
        return (
            f"Its largest part is activations, {plan.activations / 2**20:,.0f} MiB: halve batch_size and double optimizer.accumulation, "
            "or set backbone.options={checkpointing: true}"
        )
    if network >= head:
        return f"Its largest part is the network's parameters, {network / 2**20:,.0f} MiB: take a smaller one (attfc backbones)"
    held = f"Its largest part is the head's rows, {head / 2**20:,.0f} MiB"
    if plan.head.startswith(("full_fc", "partial_fc")):
        return f"{held} with gradients and momentum: head=attfc trains none"
    table = (
        ", or keep the centers in a file: negatives.place=file negatives.folder=FOLDER"
        if plan.head.startswith("attfc")
        else ""
    )
    size = "negatives.count" if plan.head.startswith("attfc") else "head.count"
    return f"{held}: lower {size}{table}"


FEW_IMAGES = 6  # per person, on average: docs/study.md has a world of few samples (1 to 6, 2.6 on average)


def advice(plans: Sequence[Plan], identities: int, images: int | None = None) -> str:
    """Say in a sentence or two which of the heads is the better choice, and why.

    Measured: docs/study.md, thousands of identities. Beyond that size it rests on memory and time alone, and says so.
    """
    fitting = {plan.head.split(",")[0].split(" ")[0]: plan for plan in reversed(plans) if plan.fits is not False}
    if not fitting:
        least = min(plans, key=lambda plan: plan.peak)
        return f"None fits; {least.head} needs the least. {way_to_save(least)}."
    few = images is not None and images < FEW_IMAGES * identities
    if few and "attfc" in fitting:
        return (
            f"attfc: people have {images / identities:.1f} images each, too few to train a center for each of them "  # type: ignore[operator]
            "(docs/study.md, where people have few samples). center=key_attention embeds more images per step and gains a little accuracy."
        )
    level = "docs/study.md, 2,360 identities of real faces: attfc with center=own_embedding at a tenth of the rows equals full_fc over all pairs"
    if "full_fc" in fitting and identities < 200_000:
        return f"full_fc: it fits, it is the reference, and below some hundred thousand identities its rows cost little ({level})."
    if "partial_fc" in fitting and "attfc" in fitting:
        saved = (fitting["partial_fc"].peak - fitting["attfc"].peak) / 2**30
        return (
            f"both partial_fc and attfc fit: attfc takes {saved:.1f} GiB less, trains no rows, and with center=own_embedding needs no keys. "
            f"Accuracy at this size is not measured by us ({level})."
        )
    if "attfc" in fitting:
        return f"attfc: partial_fc does not fit. Accuracy at this size is not measured by us ({level})."
    if len(fitting) == 1:
        return f"{next(iter(fitting))}: the only one that fits."
    return f"{' and '.join(reversed(fitting))}: the only ones that fit."
