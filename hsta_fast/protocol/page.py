"""The html of a report: tables, cards, pictures, and the page that they stand in."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import pandas as pd


def card(name: str, meaning: str, value: float, baseline: float, extent: str) -> str:
    """One score: its value, its interval as text, and the baseline as a tick on its bar."""
    return (
        f'<div class="card"><h3>{name}</h3><p class="value">{value:.3f}</p>'
        f'<div class="bar"><b style="width:{100 * value:.1f}%"></b>'
        f'<i style="left:{100 * baseline:.1f}%"></i></div>'
        f"<p>{html.escape(extent)}</p><p>majority class {baseline:.3f}</p><p>{meaning}</p></div>"
    )


def rows(frame: pd.DataFrame) -> list[list[Any]]:
    """The cells as shown: fractions with three decimals."""
    return [
        [f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row]
        for row in frame.itertuples(index=False)
    ]


def table(
    heads: Sequence[str], rows: Sequence[Sequence[Any]], *, words: int, foot: Sequence[str] = ()
) -> str:
    """An html table, every cell escaped; the first `words` columns are text, the others numbers."""

    def line(cells: Sequence[Any], tag: str) -> str:
        kinds = ["" if i < words else ' class="n"' for i in range(len(cells))]
        return "".join(f"<{tag}{k}>{html.escape(str(c))}</{tag}>" for k, c in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>\n" for row in rows)
    end = f"<tfoot><tr>{line(foot, 'td')}</tr></tfoot>" if foot else ""
    head = f"<thead><tr>{line(heads, 'th')}</tr></thead>"
    return f'<div class="scroll"><table>{head}<tbody>\n{body}</tbody>{end}</table></div>'


def flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as ("outer.inner", value) lines."""
    lines = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            lines += flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            lines.append((f"{prefix}{key}", text))
    return lines


def picture(png: bytes, words: str, kind: str) -> str:
    """A picture inside the page; `words` below it say what it shows."""
    data = base64.b64encode(png).decode("ascii")
    image = f'<img class="{kind}" alt="{html.escape(words)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{html.escape(words)}</figcaption></figure>"


# The policy in the head makes a browser refuse anything from outside this file. Pictures keep a white ground.
PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$name</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --soft: #57606a; --ground: #ffffff; --panel: #f6f8fa;
  --line: #d8dee4; --model: #0072b2; --note: #fff4d6; --note-line: #c98a00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9aa4af; --ground: #0f1318;
  --panel: #181d24; --line: #313842; --model: #56b4e9; --note: #32290f; --note-line: #e0a72e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 60rem; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--ground); font: 16px/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .6rem; font-size: 1.15rem; }
h3 { margin: 0; font-size: .95rem; color: var(--soft); }
p { margin: .3rem 0; }
.soft, .card p { color: var(--soft); font-size: .9rem; }
.note { margin: .8rem 0; padding: .6rem .9rem; border-left: 4px solid var(--note-line);
  background: var(--note); overflow-wrap: anywhere; }
.leaky { margin: .8rem 0; padding: .6rem .9rem; color: #ffffff; background: #a40e26; font-weight: 600; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem;
  margin: 1.5rem 0 .6rem; }
.card { padding: 1rem; border: 1px solid var(--line); border-radius: 8px; background: var(--panel); }
.card .value { margin: 0; font-size: 2.4rem; line-height: 1.2; color: var(--ink); }
.bar { position: relative; height: 6px; margin: .4rem 0 .6rem; border-radius: 3px; background: var(--line); }
.bar b { display: block; height: 100%; border-radius: 3px; background: var(--model); }
.bar i { position: absolute; top: -4px; width: 2px; height: 14px; background: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 24rem); font-size: .92rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td { overflow-wrap: break-word; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.n { padding-left: .8rem; text-align: right; }
tfoot td { color: var(--soft); font-style: italic; }
img { display: block; width: 100%; height: auto; padding: .5rem; border: 1px solid var(--line);
  border-radius: 8px; background: #ffffff; }
img.square { max-width: 36rem; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; }
  img, .card, .note, tr { break-inside: avoid; } * { print-color-adjust: exact; } }
</style>
</head>
<body>
<h1>$name</h1>
<p class="soft">$extent</p>
$stamp
$notes
<div class="cards">$cards</div>
<p class="soft">Counts are pooled over all folds before scoring. The tick on a bar is the majority class: in
each fold, the answer is always the most frequent class of its training clips.</p>
<p class="soft">The interval of 95 % is over subjects drawn with replacement (2,000 draws): how much the
scores hang on who was recorded.</p>
<p class="soft">Epoch scored: $epoch</p>
<h2>Pooled over folds</h2>
$pooled
<h2>Data sets</h2>
<p class="soft">Each data set's clips, over the classes that it has.</p>
$datasets
<h2>Classes</h2>
$classes
<h2>Confusion matrices</h2>
$confusion
<h2>Learning curves</h2>
$curves
<h2>Folds</h2>
<p class="soft">Each fold by itself, over the classes it has clips of. The mean of folds is shown for
comparison; it weighs small folds like large ones.</p>
$folds
<h2>Subjects</h2>
$subjects
<h2>Faults of the data ($num_faults)</h2>
$faults
<h2>Settings</h2>
$config
</body>
</html>
""")
