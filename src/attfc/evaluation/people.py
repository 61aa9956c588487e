"""How many people stand behind a metric, and whether one of them is most of it: the sentences that go with the metric."""

from attfc.typing import Int64

__all__ = ["FEW_PEOPLE", "dominant_person", "few_people", "heading_with_people", "rests_on"]

FEW_PEOPLE = 20
"""Below so many people no metric stands without saying on how many it rests."""
_LARGE_SHARE = 0.2


def few_people(people: int) -> list[str]:
    """Return a note if metrics rest on fewer than 20 people, those with a mated pair or a mated probe."""
    if people >= FEW_PEOPLE:
        return []
    return [f"{rests_on(people)}: too few to say how the model does on other people (at least {FEW_PEOPLE} are needed)"]


def rests_on(people: int) -> str:
    """Return "rests on 2 people"."""
    return f"rests on {people:,} {'person' if people == 1 else 'people'}"


def heading_with_people(heading: str, people: object) -> str:
    """Return a heading of metrics, with the number of people behind them where they are few; `people` as in figures, None if unknown."""
    if isinstance(people, int) and people < FEW_PEOPLE:
        return f"{heading}; {rests_on(people)}, too few to judge a model"
    return heading


def dominant_person(pairs_I: Int64, of: str) -> list[str]:
    """Return a note if one identity holds more than a fifth of the mated pairs, and more than others do.

    Args:
        pairs_I: mated pairs of each identity.
        of: "all pairs", or `Pairs.title` of a list.
    """
    largest, total = int(pairs_I.max()), int(pairs_I.sum())
    if largest <= _LARGE_SHARE * total or largest * int((pairs_I > 0).sum()) == total:
        return []
    return [
        f"{of}: one person holds {100 * largest / total:.1f} % of the mated pairs, so TAR is largely theirs"
        + (": see the TAR with each person alike" if of == "all pairs" else "")
    ]
