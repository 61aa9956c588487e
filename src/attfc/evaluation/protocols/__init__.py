"""The protocols, each in a file of its own: how it evaluates, the scores behind its figures, its tables. `protocol` says what one is.

A new protocol is a file that defines a `Protocol`, and its line in `PROTOCOLS`; helpers of one lie beside it (`template_lists`, `pair_lists`, ...).
"""

from attfc.errors import UserError, nearest
from attfc.evaluation.bootstrap import FigurePath
from attfc.evaluation.protocols import all_pairs, held_out, identification, pairs, templates
from attfc.evaluation.protocols.protocol import Board, Protocol

__all__ = ["PROTOCOLS", "board_of", "family_of", "find_protocol"]

PROTOCOLS: tuple[Protocol, ...] = (
    held_out.PROTOCOL,
    pairs.PROTOCOL,
    pairs.NAMED_SETS,
    all_pairs.PROTOCOL,
    identification.PROTOCOL,
    templates.PROTOCOL,
)
_BY_NAME = {name: protocol for protocol in PROTOCOLS for name in protocol.names}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by the name asked for.

    Raises:
        UserError: there is none of this name; names joined by commas that cannot be.
    """
    parts = name.split(",")
    found = [_BY_NAME.get(part) for part in parts]
    first = found[0]
    if first is not None and all(one is first for one in found) and (len(parts) == 1 or first.joined):
        return first
    unknown = next((part for part in parts if part not in _BY_NAME), None)
    if len(parts) > 1 and unknown is None:
        joined = ", ".join(one for protocol in PROTOCOLS if protocol.joined for one in protocol.names)
        raise UserError(f"{name!r}: only {joined} can be joined by commas")
    raise UserError(f"unknown protocol {unknown!r}{nearest(str(unknown), _BY_NAME)}: there are {', '.join(_BY_NAME)}")


def family_of(name: str) -> str:
    """Return what two results must share to be compared: the protocol, but a set by name is evaluated as any list of pairs."""
    protocol = _BY_NAME.get(name, pairs.PROTOCOL)
    return protocol.family or name


def board_of(name: str, data: str, place: FigurePath) -> Board:
    """Return where figures of a result stand in a report.

    Args:
        name: of the protocol, as the result has it. data: the name of what it was evaluated on.
        place: of the figures within the result's.
    """
    protocol = pairs.PROTOCOL if place[:1] == ("sets",) else _BY_NAME.get(name, held_out.PROTOCOL)
    try:
        return protocol.board(name, data, place)
    except IndexError:  # a result from elsewhere may have its figures anywhere
        return held_out.PROTOCOL.board(name, data, place)
