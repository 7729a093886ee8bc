"""What is read from machine code: loops, spills inside and outside them, clocks per pipe."""

import pytest

from hsta_fast.kernels.resources import _clocks, _loops, _spills

# A nested loop with a spill in each loop and one before; two products, an exponential, a load past the L1.
CODE = """
.text.kernel:
        /*0000*/                   STL [R1], R2 ;
.L_x_1:
        /*0010*/                   LDL R2, [R1] ;
.L_x_2:
        /*0020*/                   LDGSTS.E.BYPASS.128 [R3], desc[UR4][R4.64] ;
        /*0030*/                   HGMMA.64x64x16.F32.BF16 R24, gdesc[UR4], R24, gsb0 ;
        /*0040*/                   MUFU.EX2 R5, R5 ;
        /*0050*/                   LDG.E.U16 R6, desc[UR4][R4.64] ;
        /*0060*/               @P0 STL [R1+0x4], R6 ;
        /*0070*/               @P1 BRA `(.L_x_2) ;
        /*0080*/               @P2 BRA `(.L_x_1) ;
        /*0090*/                   EXIT ;
"""
WARPS = 4


def test_loops_are_the_innermost() -> None:
    [loop] = _loops(CODE)
    assert len(loop) == 6 and loop[0].startswith("LDGSTS") and loop[-1].startswith("@P1 BRA")
    assert _spills(loop) == 1
    assert _spills(CODE.splitlines()) == 3


@pytest.mark.parametrize("per_tile", [1.0, 0.5])
def test_clocks(per_tile: float) -> None:
    [loop] = _loops(CODE)
    clocks = _clocks(loop, WARPS, per_tile)
    expected = {
        "matrix": 2 * 64 * 64 * 16 / 4096,
        "exponential": 32 * WARPS / 16,
        # The right operand of 64 x 16 and the left of equal size, 2 bytes each; and what the copy writes.
        "shared memory": (2 * 2 * 64 * 16 + 32 * WARPS * 16) / 128,
        "L2": 32 * WARPS * (16 + 2) / 26,
        "issue": 6 * WARPS / 4,
    }
    assert {pipe: clocks[pipe] for pipe in expected} == {pipe: x * per_tile for pipe, x in expected.items()}


def test_tf32_takes_twice_the_time_and_the_bytes() -> None:
    loop = ["HGMMA.64x64x8.F32.TF32 R24, gdesc[UR4], R24, gsb0", "BRA"]
    clocks = _clocks(loop, WARPS, 1.0)
    assert clocks["matrix"] == 2 * 2 * 64 * 64 * 8 / 4096
    assert clocks["shared memory"] == 4 * 2 * 64 * 8 / 128
