"""Kernels compiled ahead of the GPU tests: few, enough for all draws, and found again by the launches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.plan import SPECIALISATIONS
from tests.gpu.compile_ahead import MOST

# Run in separate processes, where @triton.jit compiles, for a device that is not present.
PREPARE = """
import json, sys
from hsta_fast.kernels import space_time_attention, attention_pool
from tests.gpu import compile_ahead
target = compile_ahead.stand_in(90, 132)
import torch, triton
from tests.gpu import shapes
torch.randn = lambda *shape, **how: torch.empty(*shape, **how)  # nothing reads the values
"""
DRAWS = """
from hsta_fast import space_time_attention as attend
def launch(shape):
    given = shapes.attention_inputs(*shape)
    query = given[0] if len(given) == 3 else given[0][:, :, 0]
    shapes.with_gradients(lambda *x: attend(*x, impl="triton"), given, torch.empty_like(query))
ahead = compile_ahead.gather(shapes.launches())
drawn = compile_ahead.gather(
    call
    for seed in shapes.SEEDS[: int(sys.argv[1])]
    for call in (
        *(lambda shape=shape: launch(shape) for shape in shapes.attention_draws(seed)),
        *(lambda shape=shape: shapes.pool_launch(*shape) for shape in shapes.pool_draws(seed)),
    )
)
print(json.dumps([len(ahead), len(drawn), [json.loads(data)["name"] for data in set(drawn) - set(ahead)]]))
"""
TRIED = """
from benchmarks import tune
from hsta_fast.kernels.launch import of_capability
given = list(tune.cases(of_capability(90), "cpu"))
print(json.dumps([len(compile_ahead.gather(tune.launches("", given)))]))
"""
HITS = """
if __name__ == "__main__":
    chosen = [
        lambda: shapes.attention_launch(32, torch.bfloat16),
        lambda: shapes.pool_launch(1, 12, 600, shapes.POOLS[4]),
    ]
    found = compile_ahead.gather(chosen)
    if sys.argv[1] == "ahead":
        # One process, in another order than the launches': neither may change a key.
        compile_ahead.compile_all(reversed(list(found)), target, 1)
    compile_ahead.fix_keys()
    hits = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    from triton.runtime.jit import JITFunction
    run = JITFunction.run  # the whole of a launch, but for the call of the driver
    JITFunction.run = lambda self, *args, warmup, **kwargs: run(self, *args, warmup=True, **kwargs)
    for launch in chosen:
        launch()
    print(json.dumps([len(found), hits.count(True), hits.count(False)]))
"""


def output(code: str, cache: Path, *arguments: str) -> list[object]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), os.getcwd())))
    environment |= {"TRITON_CACHE_DIR": str(cache), "PYTHONPATH": paths}
    script = cache / "script.py"  # a file, because the pool's processes import it
    script.write_text(code)
    command = [sys.executable, str(script), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found: list[object] = json.loads(ran.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("seeds", [1, pytest.param(8, marks=pytest.mark.full)])
def test_few_kernels_are_compiled_and_the_draws_need_no_others(seeds: int, tmp_path: Path) -> None:
    ahead, drawn, missed = output(PREPARE + DRAWS, tmp_path, str(seeds))
    assert missed == []
    assert ahead == SPECIALISATIONS <= MOST
    assert drawn >= SPECIALISATIONS - 20  # type: ignore[operator]  # the draws do reach most


def test_what_tuning_compiles(tmp_path: Path) -> None:
    """Estimated at 20 of its 140 seconds, on 16 cores."""
    [count] = output(PREPARE + TRIED, tmp_path)
    assert 100 <= count <= 150  # type: ignore[operator]


@pytest.mark.parametrize(("when", "hit"), [("ahead", True), ("never", False)])
def test_a_launch_finds_what_was_compiled_ahead(when: str, hit: bool, tmp_path: Path) -> None:
    """Found by its key on disk: Triton reports for each launch whether it had to compile."""
    found, hits, compilations = output(PREPARE + HITS, tmp_path, when)
    assert found == hits + compilations >= 10  # type: ignore[operator]
    assert (hits, compilations) == ((found, 0) if hit else (0, found))
