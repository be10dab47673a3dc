# amaranth: UnusedElaboratable=no
"""What every unit provides."""
from __future__ import annotations

from typing import Any

from amaranth import signed, unsigned
from amaranth.lib import data, stream, wiring

from hw.params import Lanes


def layout(lanes: Lanes) -> data.ArrayLayout:
    """A beat of ``lanes``: an array of integers, lane 0 lowest."""
    return data.ArrayLayout(signed(lanes.bits) if lanes.signed else unsigned(lanes.bits), lanes.lanes)


def signature(lanes: Lanes) -> stream.Signature:
    """The stream that carries ``lanes``."""
    return stream.Signature(layout(lanes))


class Unit(wiring.Component):
    """A streaming unit: one node of the network.

    Every stream obeys the rules of DESIGN.md section 4: valid never waits for ready, and payload is held until taken.
    Ports that consume are named ``i`` (or ``<what>_i``, ``i0``, ``i1``), ports that produce ``o`` (or ``o0``, ``o1``).

    Members common to all units:

    * ``frame_cycles``: cycles between two back-to-back frames when neither side stalls;
    * ``varies``: the values decide how long a frame takes, and ``frame_cycles`` is the most;
    * ``multipliers``: how many multiplications the unit can start in a cycle.
    """

    varies = False
    #: The arguments that it was made from, in order and by name.
    arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Unit:
        made: Unit = super().__new__(cls, *args, **kwargs)
        made.arguments = args, kwargs
        return made

    @property
    def frame_cycles(self) -> int:
        """Steady interval of back-to-back frames, in cycles."""
        raise NotImplementedError(f"{type(self).__name__} must state its frame_cycles")

    @property
    def multipliers(self) -> int:
        """Multipliers in the data path (0 for units that only move data)."""
        return 0
