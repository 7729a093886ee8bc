"""The examples of docs/layers.md run, and print what the page says."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "layers.md").read_text()
EXAMPLES = re.findall(r"## (\w+)\n.*?```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("code", "printed"), [example[1:] for example in EXAMPLES], ids=lambda text: "")
def test_an_example_prints_what_the_page_says(
    code: str, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(code, "docs/layers.md", "exec"), {})
    assert capsys.readouterr().out == printed


def test_each_layer_has_its_example() -> None:
    listed = re.findall(r"^\| `(?:\w+\.)?(\w+)` \|", PAGE, re.MULTILINE)
    assert sorted(name for name, *_ in EXAMPLES) == sorted(listed) and len(listed) == 8
