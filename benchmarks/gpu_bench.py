"""The bench stage of `make gpu`: every case of the benchmarks, one entry each as it is measured.

What torch.compile takes part in comes last: a stage cut short has answered for the rest.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import bench_attention_pool, bench_space_time_attention, bench_train_step, bench_tubelet_embed
from benchmarks.cases import Case, Place, Step, measure
from benchmarks.entries import DEVICE_FAULT, append, read

SIDE, COPIED = 8192, 1 << 30  # of the matrix product, and bytes of the copy, that give the ceilings


def _product(place: Place) -> Step:
    side, dtype = (64, torch.float32) if place.tiny else (SIDE, torch.bfloat16)
    a, b = (torch.randn(side, side, device=place.device).to(dtype) for _ in range(2))
    return lambda: a @ b


def _copy(place: Place) -> Step:
    source = torch.randint(
        0, 256, (1 << 16 if place.tiny else COPIED,), dtype=torch.uint8, device=place.device
    )
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def cases() -> list[Case]:
    def found() -> Iterator[Case]:
        yield Case(group="ceilings", name="product", peer=False, make=_product, flop=2.0 * SIDE**3)
        yield Case(group="ceilings", name="copy", peer=False, make=_copy, size=2.0 * COPIED)
        for module in (
            bench_space_time_attention,
            bench_attention_pool,
            bench_tubelet_embed,
            bench_train_step,
        ):
            yield from module.cuda_cases()

    return sorted(found(), key=lambda case: case.compiled)


def dead(place: Place) -> bool:
    """Whether the device answers no more, as after an illegal access."""
    if place.device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=Path, required=True, help="file that entries are appended to")
    parser.add_argument("--stand-in", action="store_true", help="on the CPU, tiny, compiling nothing")
    arguments = parser.parse_args()
    place = Place(device="cpu", tiny=True, backend="eager") if arguments.stand_in else Place()
    before = read(arguments.entries)
    for entry in before:
        if entry.get("failed") and "group" not in entry:  # of a process that ended within the case
            append(arguments.entries, entry)
    done = {entry["case"] for entry in before}
    failed = any("failed" in entry for entry in before)
    for case in cases():
        if str(case) in done:
            continue
        append(arguments.entries, {"started": str(case)})
        entry = measure(case, place)
        append(arguments.entries, entry)
        failed |= "failed" in entry
        if "failed" in entry:
            print(f"{case}: {entry['failed']}", flush=True)
            if dead(place):
                return DEVICE_FAULT
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
