"""Instructions counted in listings whose counts are known."""

from __future__ import annotations

import pytest

from .sass import Listing, NotCounted

NESTED = """
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/               @P0 EXIT ;
.L_x_1:
        /*0020*/                   IMAD.MOV.U32 R2, RZ, RZ, R0 ;
.L_x_2:
        /*0030*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0040*/                   LDG.E.128.CONSTANT R8, desc[UR4][R2.64+0x200] ;
        /*0050*/                   BRA.DIV UR4, `(.L_x_9) ;
.L_x_3:
        /*0060*/                   SHFL.IDX PT, R12, R7, RZ, 0x1f ;
        /*0070*/               @P1 BRA `(.L_x_4) ;
        /*0080*/                   VIADD R2, R2, 0x400 ;
        /*0090*/                   VIADD R2, R2, 0x400 ;
.L_x_4:
        /*00a0*/               @P2 BRA `(.L_x_2) ;
        /*00b0*/                   BSSY B0, `(.L_x_6) ;
        /*00c0*/               @P3 BRA `(.L_x_5) ;
        /*00d0*/                   STG.E.64 desc[UR4][R2.64], R4 ;
.L_x_5:
        /*00e0*/                   BSYNC B0 ;
.L_x_6:
        /*00f0*/              @!P0 BRA `(.L_x_1) ;
        /*0100*/                   EXIT ;
.L_x_9:
        /*0110*/                   WARPSYNC.COLLECTIVE R3, `(.L_x_3) ;
        /*0120*/                   BRA `(.L_x_3) ;
.L_x_10:
        /*0130*/                   BRA `(.L_x_10);
"""


def test_loops_are_counted() -> None:
    """The inner loop has 6 to 8 instructions, the rest 5 to 6."""
    listing = Listing(NESTED)
    assert listing.per_turn(2) == (6 + 5, 8 + 6)
    assert listing.per_turn(8) == (4 * 6 + 5, 4 * 8 + 6)


@pytest.mark.parametrize("loads", [1, 3, 0])
def test_loads_that_the_loops_cannot_make(loads: int) -> None:
    with pytest.raises(NotCounted, match="loads, not"):
        Listing(NESTED).per_turn(loads)


def test_a_call_ends_the_count() -> None:
    called = NESTED.replace("S2R R0, SR_TID.X", "CALL.REL.NOINC `($__internal_0)")
    with pytest.raises(NotCounted, match=r"CALL\.REL\.NOINC where lanes are together"):
        Listing(called).per_turn(2)


def test_a_line_that_is_not_understood() -> None:
    with pytest.raises(NotCounted, match="not understood"):
        Listing(NESTED.replace("EXIT ;", "EXIT"))


@pytest.mark.parametrize(("loads", "issued"), [(2, 8 + 6), (8, 4 * 8 + 6), (1, 4 + 6)])
def test_the_most_that_a_warp_issues(loads: int, issued: int) -> None:
    """The inner loop has 8 instructions and 2 loads, the rest 6 instructions."""
    assert Listing(NESTED).at_most(loads) == issued


def test_without_wide_loads_a_turn_is_counted() -> None:
    assert Listing(NESTED.replace("128", "64")).at_most(5) == 8 + 6


def test_no_loop_is_not_counted() -> None:
    straight = NESTED.replace("BRA `(.L_x_1)", "NOP").replace("BRA `(.L_x_2)", "NOP")
    with pytest.raises(NotCounted, match=r"^no loop$"):
        Listing(straight).at_most(1)


def test_loads_in_flight() -> None:
    assert Listing(NESTED).loads_in_flight == 2
    # The second load waits for the first, whose result is its address.
    chained = NESTED.replace("R8, desc[UR4][R2.64+0x200]", "R8, desc[UR4][R4.64+0x200]")
    assert Listing(chained).loads_in_flight == 1
    assert Listing(NESTED.replace("128", "64")).loads_in_flight == 0
