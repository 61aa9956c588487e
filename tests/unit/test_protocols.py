"""The contract of a protocol: registered once, named in the help, taking options that exist."""

import pytest
import typer

from attfc import cli
from attfc.commands.evaluation.options import EvaluationOptions
from attfc.errors import UserError
from attfc.evaluation.bootstrap import Interval
from attfc.evaluation.protocols import PROTOCOLS, board_of, family_of, find_protocol
from attfc.evaluation.protocols.protocol import Cell


def test_every_protocol_is_named_in_the_help_and_takes_options_that_exist() -> None:
    group = typer.main.get_command(cli.app)
    (argument,) = [one for one in group.commands["evaluate"].params if one.name == "protocol"]  # type: ignore[attr-defined]
    options = EvaluationOptions().for_protocols(keep_scores=True)
    for protocol in PROTOCOLS:
        for name in protocol.names:
            assert name in argument.help
            assert find_protocol(name) is protocol
            assert board_of(name, "faces", ("sets", "lfw")).title == "LFW: pairs"
        assert set(protocol.options) <= set(options), protocol.names
        assert set(protocol.taken(protocol.names[0], options)) == set(protocol.options)


def test_options_of_one_protocol_are_refused_by_the_others() -> None:
    for given, name, text in (
        ({"groups": "g.tsv"}, "lfw", "--groups is of the protocol all-pairs: leave it out of lfw"),
        (
            {"far": ["1e-3,0.1", "0.01"]},
            "identify",
            "--far is an option of the protocol all-pairs: leave it out of identify",
        ),
        ({"pairs": "p.txt"}, "ijbb", "ijbb brings its own pairs: leave out --pairs"),
        ({"pairs": "p.txt"}, "all-pairs", "all-pairs scores every pair of images: leave out --pairs"),
    ):
        asked = EvaluationOptions(**given)  # type: ignore[arg-type]
        with pytest.raises(UserError, match=text):
            find_protocol(name).taken(name, asked.for_protocols(keep_scores=True))
    assert EvaluationOptions(far=["1e-3,0.1", "0.01"]).fars == (0.001, 0.01, 0.1)


def test_results_of_one_family_are_compared() -> None:
    assert family_of("lfw") == family_of("lfw,cfp_fp") == family_of("pairs") == "pairs"
    assert len({family_of(name) for name in ("lfw", "held-out", "all-pairs", "identify", "ijbb", "ijbc")}) == 6
    for name, text in {
        "lfv": "unknown protocol 'lfv'; did you mean 'lfw'\\?: there are held-out, pairs, lfw",
        "lfw,held-out": "'lfw,held-out': only lfw, cfp_fp, agedb_30, calfw, cplfw can be joined by commas",
        "held-out,held-out": "can be joined by commas",
        "lfw,cfq": "unknown protocol 'cfq'",
    }.items():
        with pytest.raises(UserError, match=text):
            find_protocol(name)


def test_a_cell_is_a_figure_with_its_interval() -> None:
    figures = {"auc": 0.98765, "pairs": 1200, "tar_at_far": {"0.1": 0.5, "0.01": None}}
    intervals = {("auc",): Interval(0.98765, 0.9, 1.0), ("tar_at_far", "0.1"): Interval(0.5, None, None)}
    cells = [Cell(("auc",), "share"), Cell(("auc",)), Cell(("pairs",), "count"), Cell(("tar_at_far", "0.1"))]
    assert [cell.text(figures, intervals) for cell in cells] == [
        *("0.9877 [0.9000, 1.0000]", "98.77 [90.00, 100.00]", "1,200", "50.00 [-]"),
    ]
    assert Cell(("tar_at_far", "0.01")).text(figures, {}) == Cell(("nothing", "here")).text(figures, {}) == "-"
    assert Cell(("tar_at_far", "0.1")).text(figures, {}) == "50.00"
