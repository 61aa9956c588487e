"""Parts from a configuration: what does not go together is said as it was typed, and before any data are opened."""

import itertools
import re

import pytest

from attfc.config import Asked, load_config, read_preset
from attfc.config.kinds import KINDS
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.run.automatic import first_configuration
from attfc.run.build import new_run
from attfc.run.components import build_head, refuse_misfits

CLASSES = {home.partition(":")[2] for section in KINDS.values() for home in section.values()}


def refusal(of: object) -> str | None:
    try:
        of()  # type: ignore[operator]
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("center", KINDS["center"])
def test_misfits_are_said_in_the_words_of_options_and_the_same_without_data(center: str) -> None:
    refused = 0
    for negatives, stored, in_batch in itertools.product(
        KINDS["negatives"], ("none", *KINDS["stored"]), ("push", "none")
    ):
        typed = [f"center={center}", f"negatives={negatives}", f"stored={stored}", f"in_batch={in_batch}"]
        config = load_config("demo", ["batch_size=4", "backbone.embedding_size=4", "negatives.count=8", *typed])
        said = refusal(lambda config=config: build_head(config, 40, images=80))
        assert said == refusal(lambda config=config: refuse_misfits(config)), typed
        if said is not None:
            refused += 1
            assert not CLASSES & set(re.findall(r"\w+", said)), said
            assert '"' not in said
            assert "(" not in said
    assert refused >= 10


def test_rows_that_cannot_be_replicated_are_refused_and_no_row_is_drawn_for_it(monkeypatch) -> None:
    monkeypatch.setattr("attfc.heads.full_fc.draw_rows", lambda *_: pytest.fail("rows are drawn"))
    typed = ["head=partial_fc", "distributed.rows=replicated"]
    refuse_misfits(load_config("demo", typed))  # one process
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refuse_misfits(load_config("demo", ["head=full_fc", "distributed.rows=replicated"]))
    with pytest.raises(
        UserError, match=r"^distributed\.rows=replicated needs head\.kind=full_fc, and this is partial_fc"
    ):
        refuse_misfits(load_config("demo", typed))


def test_misfits_and_small_banks_are_refused_before_the_data_are_opened() -> None:
    nowhere = "data.root=/nowhere/faces"
    for automatic in (False, True):
        asked = read_preset("demo", ["center=key_attention", "in_batch=push", nowhere])
        asked = Asked(asked.values, asked.overrides, asked.origin, automatic)
        with pytest.raises(
            UserError, match=r"^in_batch=push does not go with center=key_attention: .* take in_batch=fixed"
        ):
            new_run(asked)
        assert first_configuration(asked).in_batch == "push"
    with pytest.raises(UserError, match=r"^negatives\.count=5 is smaller than batch_size=128, "):
        new_run(read_preset("demo", ["center=key_attention", "negatives=recent_centers", "negatives.count=5", nowhere]))
    with pytest.raises(
        UserError, match=r"^head\.past=5 is smaller than batch_size=128, .*: set head\.past=128 or more"
    ):
        new_run(read_preset("demo", ["head=full_fc", "head.past=5", nowhere]))
    with pytest.raises(UserError, match=r"/nowhere/faces"):
        new_run(read_preset("demo", [nowhere]))


def test_a_replicated_head_sets_aside_after_its_own_share_of_an_epoch() -> None:
    filtered = ["head=full_fc", "head.filter_above=0.3", "head.filter_gap=0.2"]
    for typed, images in ((["distributed.rows=replicated"], 50), ([], 100)):
        head = build_head(load_config("demo", [*filtered, *typed]), 10, Ranks(0, 2), images=100)
        assert head.set_aside is not None
        assert head.set_aside.images == images
