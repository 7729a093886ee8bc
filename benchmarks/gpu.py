"""`make gpu`: GPU tests and benchmarks with the interpreter at hand; a table, and a JSON file in results/.

Installs nothing: run from the repository's root with PYTHONPATH=. where there is a CUDA build of torch.
"""

import datetime
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import hsta_fast

RESULTS = Path(__file__).parent / "results"


def pytest_run(*args: str) -> int:
    """Run pytest in its own process; returns its exit status."""
    return subprocess.run([sys.executable, "-m", "pytest", "-q", *args], check=False).returncode


def benchmarks() -> tuple[int, list[dict[str, Any]]]:
    """Run every benchmark; returns pytest's exit status and one entry per case, times in milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "benchmark.json"
        status = pytest_run(
            "benchmarks", "--benchmark-only", f"--benchmark-json={report}", "--benchmark-quiet"
        )
        found = json.loads(report.read_text())["benchmarks"] if report.exists() else []
    return status, [
        {"case": entry["name"], "group": entry["group"], "median_ms": entry["stats"]["median"] * 1e3}
        | entry["extra_info"]
        for entry in found
    ]


def main() -> int:
    """Tests, then benchmarks; the results file is written even where a test failed, and says so."""
    if not torch.cuda.is_available():
        print(f"make gpu wants a CUDA device, torch {torch.__version__} finds none", file=sys.stderr)
        return 1
    tests = pytest_run("tests", "-m", "gpu")
    status, entries = benchmarks()
    properties = torch.cuda.get_device_properties(0)
    device = properties.name.lower().replace(" ", "-")
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": properties.name,
        "tests_passed": tests == 0,
        "info": hsta_fast.info(),
        "benchmarks": entries,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{device}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    width = max((len(entry["case"]) for entry in entries), default=0)
    for entry in entries:
        rest = {k: v for k, v in entry.items() if k not in ("case", "group", "median_ms")}
        extras = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rest.items())
        print(f"{entry['case']:<{width}}  {entry['median_ms']:10.3f} ms  {extras}")
    print(f"GPU tests {'passed' if tests == 0 else 'FAILED'}; {len(entries)} benchmarks; {path}")
    return tests or status


if __name__ == "__main__":
    sys.exit(main())
