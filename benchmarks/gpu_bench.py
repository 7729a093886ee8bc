"""The bench stage of `make gpu`: every benchmark case, each written as an entry once it is measured.

Cases that use torch.compile come last, so a stage that is cut short has measured the others.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import (
    bench_attention_pool,
    bench_drop_in,
    bench_space_time_attention,
    bench_tubelet_embed,
    model_on_cuda,
)
from benchmarks.cases import Case, Place, Step, device_is_dead, measure
from benchmarks.entries import DEVICE_FAULT, Entry, append, read

SIDE, COPIED = 8192, 1 << 30  # side of the matrix product and bytes of the copy that give the ceilings


def _product(place: Place) -> Step:
    side, dtype = (64, torch.float32) if place.tiny else (SIDE, torch.bfloat16)
    a, b = (torch.randn(side, side, device=place.device).to(dtype) for _ in range(2))
    return lambda: a @ b


def _copy(place: Place) -> Step:
    size = 1 << 16 if place.tiny else COPIED
    source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def drop_in_cases() -> list[Case]:
    """Models of other libraries, those that are installed."""
    return list(bench_drop_in.cuda_cases())


def cases() -> list[Case]:
    def found() -> Iterator[Case]:
        yield Case(group="ceilings", name="product", peer=False, make=_product, flop=2.0 * SIDE**3)
        yield Case(group="ceilings", name="copy", peer=False, make=_copy, size=2.0 * COPIED)
        for module in (
            bench_space_time_attention,
            bench_attention_pool,
            bench_tubelet_embed,
            model_on_cuda,
        ):
            yield from module.cuda_cases()

    return sorted(found(), key=lambda case: case.compiled)


def short(entry: Entry) -> str:
    """A case in a word or two: its name, and its time or why it has none."""
    word = next((word for word in ("refuses", "skipped", "failed") if word in entry), None)
    return f"{entry['name']} {word or format(entry['ms'], '.3f') + ' ms'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=Path, required=True, help="file to append entries to")
    parser.add_argument(
        "--stand-in", action="store_true", help="tiny cases on the CPU, under TRITON_INTERPRET=1"
    )
    parser.add_argument("--drop-in", action="store_true", help="models of other libraries instead")
    arguments = parser.parse_args()
    place = Place(device="cpu", tiny=True, backend="eager") if arguments.stand_in else Place()
    before = read(arguments.entries)
    done = {entry["case"] for entry in before}
    failed = any("failed" in entry for entry in before)
    chosen = drop_in_cases() if arguments.drop_in else cases()
    left = (case for case in chosen if str(case) not in done)
    for group, members in itertools.groupby(left, key=lambda case: case.group):
        found = []
        for case in members:
            append(arguments.entries, {"started": str(case)})
            found.append(measure(case, place))
            append(arguments.entries, found[-1])
            if "failed" in found[-1]:
                failed = True
                print(f"{case}: {found[-1]['failed']}", flush=True)
                if place.device == "cuda" and device_is_dead():
                    return DEVICE_FAULT
        print(f"{group}: {', '.join(map(short, found))}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
