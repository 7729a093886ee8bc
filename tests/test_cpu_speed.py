"""What is measured of the CPU: when, how often, where it is kept, and what follows from it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import hsta_fast
from hsta_fast import cpu_speed
from hsta_fast.cpu_speed import CpuSpeed, Rates, measured
from hsta_fast.environment import info_text
from tests.compiler import finish, needs_compiler, start

RATES = Rates(torch=150.0, panels=200.0, bfloat16=400.0, autocast=300.0, autocast_panels=350.0)
SLOW = Rates(torch=150.0, panels=100.0, bfloat16=100.0)


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Rates, bool]]:
    """An empty cache, and the rates that the next measurements find, quiet or not; then RATES."""
    monkeypatch.setenv("HSTA_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cpu_speed, "_found", {})
    found: list[tuple[Rates, bool]] = []

    def measure() -> tuple[dict[str, Rates], bool]:
        rates, quiet = found.pop(0) if found else (RATES, True)
        return {"narrow": rates, "wide": rates}, quiet

    monkeypatch.setattr(cpu_speed, "_measure", measure)
    return found


def forget() -> None:
    """As a new process."""
    cpu_speed._found.clear()


@needs_compiler
def test_the_real_measurement() -> None:
    state = torch.get_rng_state()
    for rates in cpu_speed._measure()[0].values():
        assert all(1 < rate < 1e6 for rate in rates[:3])
        assert (1 < rates.autocast_panels < 1e6) == cpu_speed.multiplies_bfloat16()
    assert torch.equal(torch.get_rng_state(), state)  # a seeded run is not changed


def test_nothing_is_measured_before_a_product_asks(tmp_path: Path) -> None:
    code = (
        "import torch, hsta_fast; from hsta_fast import cpu_speed\n"
        "model = hsta_fast.create_model('hsta_tiny', num_layers=1).eval()\n"
        "assert hsta_fast.info()['cpu_speed'] is None\n"
        "assert 'the first product' in hsta_fast.info()['ops']['cpu']['linear']['reason']\n"
        "assert not cpu_speed._found"
    )
    finish(start(code, HSTA_FAST_CACHE=str(tmp_path)))
    assert not list(tmp_path.glob("cpu-speed*"))


def test_it_is_measured_once_and_shown(measurements: list[tuple[Rates, bool]]) -> None:
    speed = measured()
    assert speed.wide == RATES and speed.path is not None and speed.path.is_file()
    measurements.append((SLOW, True))  # would be found by a second measurement
    for _ in range(2):
        assert measured() == speed
        forget()
    assert hsta_fast.info()["cpu_speed"]["path"] == str(speed.path)
    text = info_text()
    assert f"kept in {speed.path} until that is deleted" in text
    assert (
        "width  768: torch 150, C++ 200, torch in bfloat16 400; autocast to bfloat16: torch 300, C++ 350\n"
        in text + "\n"
    )
    forget()
    speed.path.unlink()
    assert measured().wide == SLOW and measurements == []  # deleted, so measured again


def test_the_margins() -> None:
    for panels, bfloat16, expected in (
        (104.0, 129.0, (False, False)),
        (106.0, 131.0, (True, False)),  # bfloat16 must gain over the faster of the two
        (106.0, 140.0, (True, True)),
        (0.0, 131.0, (False, True)),
    ):
        rates = Rates(torch=100.0, panels=panels, bfloat16=bfloat16)
        assert (rates.panels_pay(), rates.bfloat16_pays()) == expected
    for ours, pays in ((0.0, False), (104.0, False), (106.0, True)):
        assert RATES._replace(autocast=100.0, autocast_panels=ours).autocast_panels_pay() == pays
    assert not RATES._replace(autocast=0.0, autocast_panels=0.0).autocast_panels_pay()
    slow = RATES._replace(panels=1.0)
    speed = CpuSpeed(narrow=slow, wide=RATES, path=None)
    assert [speed.rates(width) for width in (96, 192, 384, 768)] == [slow, slow, RATES, RATES]


def test_a_disturbed_measurement_is_repeated_and_the_best_rates_are_kept(
    measurements: list[tuple[Rates, bool]],
) -> None:
    """Kept, because the numbers of a run that is continued would change with another decision."""
    fastest = Rates(torch=160.0, panels=180.0, bfloat16=150.0)
    measurements += [(SLOW, False), (fastest, False), (SLOW, True), (RATES, True)]
    speed = measured()
    assert speed.wide == fastest and speed.path is not None and len(measurements) == 1
    forget()
    assert measured() == speed and len(measurements) == 1
    speed.path.unlink()
    forget()
    measurements[:] = [(SLOW, False)] * 3
    assert measured().wide == SLOW and measured().path is not None and measurements == []


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_text(path.read_text()[:40]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "other": lambda path: path.write_text("[1, 2]"),
    "a key is missing": lambda path: path.write_text(json.dumps({"narrow": RATES._asdict()})),
    "a rate is missing": lambda path: path.write_text(path.read_text().replace("autocast_panels", "other")),
    "not finite": lambda path: path.write_text(path.read_text().replace("200.0", "NaN")),
    "negative": lambda path: path.write_text(path.read_text().replace("200.0", "-200.0")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_measured_again(measurements: list[tuple[Rates, bool]], damage: str) -> None:
    path = measured().path
    assert path is not None
    whole = path.read_text()
    DAMAGES[damage](path)
    forget()
    assert measured() == CpuSpeed(RATES, RATES, path)
    assert path.read_text() == whole


def test_a_cache_that_cannot_be_written(measurements: list[tuple[Rates, bool]], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    speed = measured()
    assert speed == CpuSpeed(RATES, RATES, None)
    measurements.append((SLOW, True))
    assert measured() == speed


@pytest.mark.usefixtures("measurements")
def test_another_number_of_threads_is_another_measurement() -> None:
    one = measured().path
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        other = measured().path
    finally:
        torch.set_num_threads(threads)
    assert one != other and measured().path == one


def test_two_processes_at_once_measure_once(tmp_path: Path) -> None:
    code = (
        "import os, time; from pathlib import Path; from hsta_fast import cpu_speed\n"
        "rates = cpu_speed.Rates(torch=1.0, panels=2.0, bfloat16=3.0)\n"
        "def measure():\n"
        "    Path(os.environ['HSTA_FAST_CACHE'], f'by-{os.getpid()}').touch(); time.sleep(0.3)\n"
        "    return {'narrow': rates, 'wide': rates}, True\n"
        "cpu_speed._measure = measure\n"
        "assert cpu_speed.measured().wide == rates"
    )
    for process in [start(code, HSTA_FAST_CACHE=str(tmp_path)) for _ in range(2)]:
        finish(process)
    assert len(list(tmp_path.glob("by-*"))) == 1
    assert len(list(tmp_path.glob("cpu-speed-*.json"))) == 1
