"""A fake CUDA driver with one card of each kind: everything of a launch except running the kernel; no GPU.

Triton's own `run` binds, specialises, compiles and checks; its launcher is replaced by one that rejects what
the CUDA driver would reject and records the other launches. Tensors have a device, strides and addresses, but
no memory (torch's FakeTensorMode), so a batch of 65,536 costs nothing. There is no autograd: its engine
asks the CUDA libraries for streams, so backward ops are called directly.

Does not work in a process that interprets kernels (TRITON_INTERPRET=1): nothing is launched there.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import compiler
from triton.runtime import jit
from triton.runtime.driver import driver

KIB = 1024
_REGISTERS, _THREADS = 65536, 1024  # the most that one block may have, on every card below
_GRID = (2**31 - 1, 65535, 65535)


@dataclass(frozen=True, kw_only=True)
class Card:
    """The device properties that launchers read, named as in torch.cuda.get_device_properties."""

    name: str
    major: int
    minor: int
    multi_processor_count: int
    shared_memory_per_block_optin: int
    total_memory: int
    warp_size: int = 32


def _card(name: str, capability: int, processors: int, shared: int, memory: int) -> Card:
    return Card(
        name=name,
        major=capability // 10,
        minor=capability % 10,
        multi_processor_count=processors,
        shared_memory_per_block_optin=shared * KIB,
        total_memory=memory * 2**30,
    )


# Device cuda:i is the i-th card, so that caches keyed by device stay valid for every card.
CARDS = {
    70: _card("Tesla V100-SXM2-16GB", 70, 80, 96, 16),
    75: _card("Tesla T4", 75, 40, 64, 15),
    80: _card("NVIDIA A100-SXM4-80GB", 80, 108, 163, 80),
    86: _card("NVIDIA GeForce RTX 3090", 86, 82, 99, 24),
    89: _card("NVIDIA GeForce RTX 4090", 89, 128, 99, 24),
    90: _card("NVIDIA H100 80GB HBM3", 90, 132, 227, 80),
    100: _card("NVIDIA B200", 100, 148, 227, 180),
    120: _card("NVIDIA GeForce RTX 5090", 120, 170, 99, 32),
}


def _most_threads(registers: int) -> int:
    """The most threads per block at this number of registers per thread; allocated in eights, per warp."""
    return min(_THREADS, _REGISTERS // (-(-registers // 8) * 8 * 32) * 32)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A launch that the driver would accept: shared and stack in bytes, registers per thread."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    registers: int
    stack: int

    def faults(self, card: Card) -> list[str]:
        """Limits of `card` that a block exceeds, and grids that are too large or empty."""
        limits = {
            "shared memory": (self.shared, card.shared_memory_per_block_optin),
            "threads": (self.threads, _most_threads(self.registers)),
        }
        limits |= {f"grid {axis}": (n, most) for axis, n, most in zip("xyz", self.grid, _GRID, strict=True)}
        found = [f"{what} {n} above {most}" for what, (n, most) in limits.items() if n > most]
        return found + ([f"grid {self.grid} is empty"] if min(self.grid) < 1 else [])


@dataclass
class Launches:
    """What was sent to the card: `launches` in order, and `compiled`, each kernel with Triton's key.

    `device` is where tensors must be made: torch.empty(..., device=launches.device).
    """

    card: Card
    device: torch.device
    launches: list[Launch] = field(default_factory=list)
    compiled: list[str] = field(default_factory=list)


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers per thread, bytes of stack per thread) of the kernel in a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    [(registers, stack)] = re.findall(r"REG:(\d+) STACK:(\d+)", said)
    return int(registers), int(stack)


class _Driver:
    """The driver interface that Triton uses, for the current card: the only element of `current`."""

    def __init__(self, current: list[int], cards: list[Card], seen: Launches) -> None:
        self._current, self._cards, self._seen = current, cards, seen
        self.utils = SimpleNamespace(get_device_properties=self._properties, load_binary=self._load)

    def get_current_device(self) -> int:
        return self._current[0]

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        card = self._cards[self._current[0]]
        return GPUTarget("cuda", 10 * card.major + card.minor, 32)

    def _properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": self._cards[device].shared_memory_per_block_optin}

    def _load(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[Any, ...]:
        registers, stack = _usage(cubin)
        return object(), (registers, stack), registers, stack, _most_threads(registers)

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        """Triton's launcher of one compiled kernel."""

        def launch(x: int, y: int, z: int, stream: int, function: tuple[int, int], *rest: Any) -> None:
            arguments = rest[4:]  # after the packed metadata, the launch's, and two hooks
            launched = Launch(
                kernel=metadata.name,
                grid=(x, y, z),
                threads=metadata.num_warps * 32,
                shared=metadata.shared,
                registers=function[0],
                stack=function[1],
            )
            current = torch.device("cuda", self._current[0])
            found = launched.faults(self._cards[self._current[0]])
            found += [f"a tensor on {t.device}" for t in _tensors(arguments) if t.device != current]
            if found:
                raise RuntimeError(f"{metadata.name} on {current}: {', '.join(found)}")
            self._seen.launches.append(launched)

        return launch


def _tensors(arguments: Sequence[Any]) -> Iterator[Tensor]:
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from _tensors(argument)


class _OurOps(TorchDispatchMode):
    """Runs the registered ops of hsta_fast as on a device, instead of their fakes."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        on_torch = any(isinstance(given, str) and given == "torch" for given in args)  # `impl`: no launches
        if func.namespace == "hsta_fast" and not on_torch:
            return func.redispatch(
                torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *args, **(kwargs or {})
            )
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_driver(capability: int, *, shared: int | None = None) -> Iterator[Launches]:
    """A card of compute capability `capability` (90 is 9.0), current on a machine that has all `CARDS`.

    shared: bytes of shared memory per block, instead of the card's own.

    Inside, RuntimeError and Triton's OutOfResources are raised as by a driver. Compiled kernels stay in
    TRITON_CACHE_DIR, as usual.
    """
    cards = dict(CARDS)
    if shared is not None:
        cards[capability] = replace(cards[capability], shared_memory_per_block_optin=shared)
    current = [list(cards).index(capability)]
    seen = Launches(cards[capability], torch.device("cuda", current[0]))
    bases: dict[int, int] = {}

    def index(device: Any = None) -> int:
        if isinstance(device, int):
            return device
        picked = None if device is None else torch.device(device).index
        return current[0] if picked is None else picked

    def properties(device: Any = None) -> Card:
        return list(cards.values())[index(device)]

    def exchange(device: int) -> int:
        before, current[0] = current[0], device if device >= 0 else current[0]
        return before

    def address(tensor: Tensor) -> int:
        """Storages lie far apart and start at multiples of 512, as with torch's allocator."""
        base = bases.setdefault(tensor.untyped_storage()._cdata, (len(bases) + 1) << 44)
        return base + int(tensor.storage_offset()) * tensor.element_size()

    def compiled(**known: Any) -> None:
        seen.compiled.append(f"{known['fn'].name.rpartition('.')[2]} {known['key']}")

    cuda: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: len(cards),
        "current_device": lambda: current[0],
        "get_device_properties": properties,
        "get_device_capability": lambda device=None: (properties(device).major, properties(device).minor),
        "get_device_name": lambda device=None: properties(device).name,
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
    }
    for kernel in jit._triton_jit_function_registry.values():
        kernel.device_caches.clear()  # load and check each again: `shared` may differ
    compiler.max_shared_mem.cache_clear()
    before = driver._active
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch.object(FakeTensor, "data_ptr", address),
        mock.patch.object(knobs.runtime, "jit_post_compile_hook", compiled),
        torch.no_grad(),
        FakeTensorMode(),
        _OurOps(),
    ):
        driver.set_active(_Driver(current, list(cards.values()), seen))
        try:
            yield seen
        finally:
            driver._active = before
