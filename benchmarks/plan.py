"""Estimated times of the stages of `make gpu`, from counts, on 16 cores and one H100.

tests/benchmarks/test_bare.py compares the counts with what is collected, so additions do not go unnoticed.
"""

from collections.abc import Mapping

# Assumed seconds. Triton compiles a kernel in 0.2 to 4 s on one core, 1.0 on average; the others are guesses.
PROCESS = 10.0  # imports and a CUDA context
SPECIALISATION = 2.0  # of one core
CORES = 16
CHECK = 0.5  # of the smoke stage
FIRST_CALL = 12.0
TEST = 0.35
DRAW = 0.025  # a random shape
SANITIZER = 25.0
CASE = 0.4
HEAD_START = 0.1  # a case: 31 rounds, each after 3 ms in which the device is kept busy
COMPILED = 8.0  # a case that torch.compile takes part in
TUNE_SECONDS = 55

SPECIALISATIONS = 88  # of kernels, in all stages but bench and tune
CHECKS, TESTS, DRAWS = 18, {"ops": 138, "kernels": 16}, 800
COMPILED_TESTS = 3  # of ops
CASES, COMPILED_CASES = 145, 20
DROP_IN_TESTS, DROP_IN_CASES, LIBRARIES = 9, 40, 30.0  # the last: seconds to import transformers and timm


def estimates() -> dict[str, tuple[float, str]]:
    """{stage: (seconds, what it runs)}."""
    ops = PROCESS + TESTS["ops"] * TEST + COMPILED_TESTS * COMPILED
    return {
        "ahead": (
            1.5 * PROCESS + SPECIALISATIONS * SPECIALISATION / CORES,  # without CUDA contexts
            f"{SPECIALISATIONS} kernel specialisations",
        ),
        "smoke": (PROCESS + CHECKS * CHECK + FIRST_CALL, f"{CHECKS} checks"),
        "ops": (ops, f"{TESTS['ops']} tests"),
        "kernels": (
            PROCESS + DRAWS * DRAW + SANITIZER,
            f"{TESTS['kernels']} tests of {DRAWS} random shapes, 2 checks under compute-sanitizer",
        ),
        "bench": (
            PROCESS + (CASES - COMPILED_CASES) * CASE + COMPILED_CASES * COMPILED + CASES * HEAD_START,
            f"{CASES} cases, {COMPILED_CASES} of them compiled by torch",
        ),
        "drop-in": (
            2 * (PROCESS + LIBRARIES) + DROP_IN_TESTS * 2 + DROP_IN_CASES * (CASE + HEAD_START + 1.5),
            f"{DROP_IN_TESTS} tests, {DROP_IN_CASES} cases, if transformers and timm are installed",
        ),
        "tune": (PROCESS + TUNE_SECONDS, f"tune.py --limit {TUNE_SECONDS}"),
    }


def plan(budgets: Mapping[str, int]) -> str:
    """One line per stage: its budget, the estimate, what it runs."""
    found = estimates()
    lines = [
        f"{name:<8} {budget:4d} s, by count {found[name][0]:4.0f} s: {found[name][1]}"
        for name, budget in budgets.items()
    ]
    total = sum(found[name][0] for name in budgets)
    return "\n".join([*lines, f"{'all':<8} {sum(budgets.values()):4d} s, by count {total:4.0f} s"])
