"""The inspection page: one HTML file that needs nothing else, in which the text itself is shaded by what was kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from string import Template
from typing import Any

from namm.report.forgetting import ClassShare, Forgetting, by_class
from namm.report.inspect_assets import PAGE, SCRIPT, STYLE
from namm.report.token_classes import CLASSES

NONE = "\u2013"
FEW = 20  # tokens; the share of a smaller class is mostly chance
BARS = 64  # along the text
STRONGEST = 4.0  # ratio of the full tint; its inverse likewise

Tables = list[list[ClassShare]]  # first of all layers together, then of each layer


@dataclass(frozen=True)
class Setting:
    """How the texts were read, in words for the page.

    Attributes:
        rule: what decides how much is kept, as the end of a sentence: "keep 25% of the tokens read".
    """

    model: str
    memory: str
    rule: str


def inspect_page(runs: dict[str, Forgetting], setting: Setting, layer: int | None = None) -> str:
    """The page for some texts (title -> what was kept), all read by the same model.

    Args:
        layer: the layer the page opens on; all together if left out.
    """
    tables = {title: [by_class(run), *(by_class(run, layer=one) for one in run.layers)] for title, run in runs.items()}
    first = next(iter(runs.values()))
    opened = 0 if layer is None else first.layers.index(layer) + 1
    return Template(PAGE).substitute(
        style=STYLE,
        script=SCRIPT,
        summary=_summary(runs, setting),
        options=_options(first, opened),
        texts="".join(_section(i, title, runs[title], tables[title], opened) for i, title in enumerate(runs)),
        comparison=_comparison(tables, opened) if len(runs) > 1 else "",
        few=FEW,
        data=json.dumps([_data(runs[title], tables[title]) for title in runs]),
    )


def percent(share: float) -> str:
    return NONE if math.isnan(share) else f"{share:.0%}" if share >= 0.0995 or share == 0 else f"{share:.1%}"


def times(ratio: float) -> str:
    return NONE if math.isnan(ratio) else f"{ratio:.2f}"


# -- head ------------------------------------------------------------------------------------------------------------


def _summary(runs: dict[str, Forgetting], setting: Setting) -> str:
    first = next(iter(runs.values()))
    layers, heads = len(first.layers), first.heads
    intervals = sorted({run.update_interval for run in runs.values()})
    every = " or ".join(str(interval) for interval in intervals)
    return (
        f"<b>{escape(setting.model)}</b> read {'this text' if len(runs) == 1 else 'these texts'} with the memory "
        f"<b>{escape(setting.memory)}</b>. Every {every} tokens, each of its {layers * heads} heads ({layers} layers "
        f"with {heads} key/value head{'s' if heads > 1 else ''} each) decides anew which tokens to hold on to: "
        f"{escape(setting.rule)}. What a head lets go is gone for good. The darker a token is shaded, the more heads "
        "still held it after the last decision."
    )


def _options(run: Forgetting, opened: int) -> str:
    names = [f"all {len(run.layers)} layers", *(f"layer {layer}" for layer in run.layers)]
    return "".join(
        f'<option value="{i}"{" selected" if i == opened else ""}>{name}</option>' for i, name in enumerate(names)
    )


# -- one text --------------------------------------------------------------------------------------------------------


def _section(index: int, title: str, run: Forgetting, tables: Tables, opened: int) -> str:
    judged, tokens = int(run.judged.sum()), len(run.spans)
    language = run.classes.language
    left = tokens - judged
    rest = f"; the last {left:,} are not yet judged" if left else ""
    how = "" if run.classes.method == "prose rules" else f" Classes by {escape(run.classes.method)}."
    return f"""
<section aria-labelledby="t{index}">
<h2 id="t{index}">{escape(title)}</h2>
<p class="note">{tokens:,} tokens{rest}. Kept of the judged ones: <b data-text="{index}" data-mean>{
        percent(run.mean(_layer(run, opened)))
    }</b>.{how}</p>
{_place_chart(index, run, _layer(run, opened))}
<div class="text {language}" data-text="{index}" tabindex="0" role="region" aria-label="{
        escape(title)
    }, shaded by what was kept">{"".join(_tokens(run, _layer(run, opened)))}</div>
{_class_table(index, tables[opened])}
<div>{_layer_chart(run, tables)}</div>
</section>"""


def _layer(run: Forgetting, opened: int) -> int | None:
    return None if opened == 0 else run.layers[opened - 1]


def _tokens(run: Forgetting, layer: int | None) -> Iterator[str]:
    """The text, each token in a span; characters of no token as they are."""
    share, at = run.share(layer).tolist(), 0
    for first, last, start, stop in _groups(run):
        yield escape(run.text[at:start])
        at = stop
        name, judged = run.classes.names[first], bool(run.judged[last])
        value = sum(share[first : last + 1]) / (last + 1 - first)
        more = f' data-j="{last}"' if last > first else ""
        look = f'style="--s:{value:.3g}"' if judged else 'class="new"'
        said = f"{percent(value)} kept" if judged else "not yet judged"
        yield (
            f'<span data-i="{first}"{more} {look} title="{name}, {said}">'
            f"{_visible(escape(run.text[start:stop]))}</span>"
        )
    yield escape(run.text[at:])


def _visible(text: str) -> str:
    """Line ends get a mark, or nothing would be there to shade."""
    return text.replace("\n", "<i></i>\n")


def _groups(run: Forgetting) -> Iterator[tuple[int, int, int, int]]:
    """First and last token, first and past-the-last character; tokens that share a character go together."""
    group: tuple[int, int, int, int] | None = None
    for i, (start, stop) in enumerate(run.spans):
        if start == stop:  # special tokens stand for no text
            continue
        if group and start < group[3]:
            group = (group[0], i, group[2], max(stop, group[3]))
            continue
        if group:
            yield group
        group = (i, i, start, stop)
    if group:
        yield group


def _class_table(index: int, rows: list[ClassShare]) -> str:
    body = "".join(
        f'<tr><th scope="row">{row.name}{"*" if row.tokens < FEW else ""}</th><td>{row.tokens:,}</td>'
        f"<td {_cell(index, row.name, 'share')}>{percent(row.share)}</td>"
        f"<td {_cell(index, row.name, 'ratio')} {_tint(row.ratio)}>{times(row.ratio)}</td>"
        f"<td {_cell(index, row.name, 'near')} {_tint(row.ratio_among_neighbours)}>"
        f"{times(row.ratio_among_neighbours)}</td></tr>"
        for row in rows
    )
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("class", "tokens", "kept", "ratio", "neighbours"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _cell(index: int, name: str, key: str) -> str:
    return f'data-text="{index}" data-class="{name}" data-key="{key}"'


def _tint(ratio: float) -> str:
    """Blue where more than usual was kept, orange where less; the deeper, the further from 1."""
    if math.isnan(ratio):
        return ""
    return f'class="{"more" if ratio >= 1 else "less"}" style="--s:{_strength(ratio):.2f}"'


def _strength(ratio: float) -> float:
    return min(1.0, abs(math.log(ratio, STRONGEST))) if ratio > 0 else 1.0


def _place_chart(index: int, run: Forgetting, layer: int | None) -> str:
    """Bars of the share kept along the text."""
    judged = int(run.judged.sum())
    share, bars = run.share(layer), min(BARS, judged)
    edges = [judged * i // bars for i in range(bars + 1)]
    rects = []
    for place, (start, stop) in enumerate(pairwise(edges)):
        value = share[start:stop].mean().item()
        rects.append(
            f'<rect class="bar" x="{place}" y="{1 - value:.3f}" width="1" height="{value:.3f}" data-text="{index}" '
            f'data-from="{start}" data-to="{stop}">'
            f"<title>tokens {start + 1:,} to {stop:,}: {percent(value)} kept</title></rect>"
        )
    return f"""<figure><svg viewBox="0 0 {bars} 1" preserveAspectRatio="none" role="img"
aria-label="share kept along the text">{"".join(rects)}</svg><figcaption>Share kept, from the first token to the last
judged one; full height is 100%.<span data-script hidden> A click goes there.</span></figcaption></figure>"""


def _layer_chart(run: Forgetting, tables: Tables) -> str:
    """For each class a strip of one cell for each layer, tinted by the ratio among neighbours."""
    strips = "".join(_strip(row.name, row.tokens < FEW, run.layers, tables) for row in tables[0])
    return f"""
<h3>By layer</h3>
<p class="note">Each cell is a layer, {run.layers[0]} on the left and {run.layers[-1]} on the right:
blue where it kept more of the class than of its neighbours, orange where less.</p>
<div class="strips">{strips}</div>"""


def _strip(name: str, few: bool, layers: tuple[int, ...], tables: Tables) -> str:
    cells = []
    for place, (layer, rows) in enumerate(zip(layers, tables[1:], strict=True)):
        row = next(row for row in rows if row.name == name)
        ratio = row.ratio_among_neighbours
        look = "" if math.isnan(ratio) else f'class="{"more" if ratio >= 1 else "less"}"'
        opacity = 0.0 if math.isnan(ratio) else _strength(ratio)
        cells.append(
            f'<rect {look} x="{place}" width="1" height="1" fill-opacity="{opacity:.2f}"><title>{name}, layer {layer}: '
            f"{percent(row.share)} kept, {times(ratio)} times its neighbours</title></rect>"
        )
    return (
        f"<span>{name}{'*' if few else ''}</span>"
        f'<svg viewBox="0 0 {len(layers)} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{name}, by layer">{"".join(cells)}</svg>'
    )


# -- several texts ---------------------------------------------------------------------------------------------------


def _comparison(tables: dict[str, Tables], opened: int) -> str:
    found = [{row.name: row for row in table[opened]} for table in tables.values()]
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(_compared(index, rows.get(name)) for index, rows in enumerate(found))
        + "</tr>"
        for name in CLASSES
        if any(name in rows for rows in found)
    )
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title in tables)
    return f"""
<section class="comparison" aria-labelledby="adapts"><h2 id="adapts">Does it adapt to what it reads?</h2>
<p>Large: how much of the class was kept against its neighbours (above 1 is preferred). Small: the share kept. A memory
that adapts treats one class differently from text to text; one that looks at age only has about 1 everywhere. One text
is one sample: inspect several of a kind before you conclude.</p>
<div class="wide"><table><thead><tr><th scope="col">class</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>
</section>"""


def _compared(index: int, row: ClassShare | None) -> str:
    if row is None:
        return f"<td>{NONE}</td>"
    few = "*" if row.tokens < FEW else ""
    return (
        f"<td {_tint(row.ratio_among_neighbours)} {_cell(index, row.name, 'near')}>"
        f"{times(row.ratio_among_neighbours)}{few}"
        f"<small {_cell(index, row.name, 'share')}>{percent(row.share)}</small></td>"
    )


# -- what the script needs -------------------------------------------------------------------------------------------


def _data(run: Forgetting, tables: Tables) -> dict[str, Any]:
    """Numbers and names of classes; nothing of the text, which could end the script it stands in."""
    return {
        "heads": run.heads,
        "layers": list(run.layers),
        "judged": int(run.judged.sum()),
        "tokens": len(run.spans),
        "classes": list(run.classes.names),
        "kept": (run.kept * run.heads).round().int().tolist(),
        "means": [_json(run.mean(layer)) for layer in (None, *run.layers)],
        "tables": [
            {
                row.name: {
                    "share": _json(row.share), "ratio": _json(row.ratio), "near": _json(row.ratio_among_neighbours),
                }
                for row in rows
            }
            for rows in tables
        ],
    }  # fmt: skip


def _json(number: float) -> float | None:
    return None if math.isnan(number) else round(number, 4)
