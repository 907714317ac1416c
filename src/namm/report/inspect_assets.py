"""Style, script and frame of the inspection page. Everything is inside the file: it opens offline."""

STYLE = """
:root { color-scheme: light dark; --ink: #16191d; --paper: #fff; --soft: #545c66; --line: #d5dae0; --box: #f6f7f9;
  --shade: 64 158 232; --more: 64 158 232; --less: 240 150 60; --bar: 47 130 205; --lack: 226 126 28; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #f1f3f5; --paper: #14171a; --soft: #a9b2bc; --line: #3a4149; --box: #1c2025;
    --shade: 30 110 196; --more: 30 110 196; --less: 160 84 10; --bar: 84 160 240; --lack: 226 140 56; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 1.5rem clamp(1rem, 3vw, 2.5rem) 5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 84rem; margin: 0 auto; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 0; }
p { margin: .25rem 0 .75rem; max-width: 75ch; }
.note, dd, small { color: var(--soft); font-size: .875rem; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: center; margin: 1rem 0 1.5rem; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem; align-items: center; font-size: .875rem; }
.legend span { padding: .1rem .5rem; border: 1px solid var(--line); }
.legend em { font-style: normal; margin-right: .25rem; }
select { font: inherit; padding: .35rem .5rem; min-height: 2.5rem; }
.texts { display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.texts:has(> :only-child) { max-width: 52rem; }
.texts > section { min-width: 0; display: grid; grid-row: span 6; grid-template-rows: subgrid; align-content: start;
  gap: 0; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 6px;
  padding: .75rem; max-height: 34rem; overflow-y: auto; line-height: 1.65; margin-bottom: 1rem; }
.text.code { font: .8125rem/1.7 ui-monospace, monospace; tab-size: 4; }
.text [data-i], .legend span { background: rgb(var(--shade) / var(--s, 0)); }
.text [data-i].new, .legend .new { background: none; color: var(--soft); text-decoration: underline dotted; }
.text i::before { content: "\\21b5"; font-style: normal; color: var(--soft); font-size: .75em; user-select: none; }
.text [data-i].chosen { outline: 2px solid var(--ink); outline-offset: 1px; border-radius: 2px; }
figure { margin: .25rem 0 .75rem; }
figure svg { display: block; width: 100%; height: 3.25rem; border: 1px solid var(--line); cursor: pointer; }
figcaption { color: var(--soft); font-size: .8125rem; }
rect.bar { fill: rgb(var(--bar)); }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%;
  align-self: start; }
th, td { text-align: right; padding: .25rem .4rem; border-bottom: 1px solid var(--line); font-weight: 400; }
thead th { color: var(--soft); vertical-align: bottom; }
th:first-child { text-align: left; }
th { overflow-wrap: break-word; }
td.more { background: rgb(var(--more) / calc(var(--s) * .85)); }
td.less { background: rgb(var(--less) / calc(var(--s) * .85)); }
td small { display: block; color: inherit; font-size: .8125rem; }
.comparison { margin-top: 2.5rem; }
.comparison table { max-width: 52rem; }
.wide { overflow-x: auto; }
.comparison td { font-size: 1rem; }
.strips { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px .6rem; font-size: .8125rem;
  align-items: center; align-content: start; }
.strips svg { display: block; width: 100%; height: 1.15rem; border: 1px solid var(--line); }
rect.more { fill: rgb(var(--bar)); } rect.less { fill: rgb(var(--lack)); } rect:not([class]) { fill: none; }
.meaning { margin-top: 2.5rem; max-width: 75ch; }
dt { font-weight: 600; margin-top: .6rem; } dd { margin: 0; font-size: 1rem; }
output { position: fixed; inset: auto 0 0 0; padding: .6rem clamp(1rem, 3vw, 2.5rem); background: var(--box);
  border-top: 1px solid var(--line); font-size: .9375rem; min-height: 2.7rem; }
output code { background: rgb(var(--shade) / .25); padding: 0 .25rem; white-space: pre-wrap; }
:focus-visible { outline: 2px solid rgb(var(--more)); outline-offset: 2px; }
[hidden] { display: none !important; }
"""

SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const select = document.getElementById("layer"), said = document.querySelector("output");
const tokens = [...document.querySelectorAll(".text [data-i]")];
const percent = s => s === null ? "\\u2013" : (s * 100).toFixed(s >= .0995 || s === 0 ? 0 : 1) + "%";
let chosen = null;

// heads that hold the tokens of a span, and the heads there are, in the chosen layer or in all
function count(span) {
  const run = data[span.parentElement.dataset.text], layer = +select.value;
  const first = +span.dataset.i, last = +(span.dataset.j ?? first);
  const rows = layer ? [run.kept[layer - 1]] : run.kept;
  let held = 0;
  for (const row of rows) for (let i = first; i <= last; i++) held += row[i];
  return { run, first, last, held, all: rows.length * run.heads * (last - first + 1), judged: last < run.judged };
}

function tell(span) {
  if (chosen) chosen.classList.remove("chosen");
  chosen = span;
  if (!span) return;
  span.classList.add("chosen");
  const c = count(span), shown = document.createElement("code");
  shown.textContent = span.textContent.replaceAll("\\n", "\\u21b5").replaceAll(" ", "\\u00b7");
  const which = c.last > c.first ? `tokens ${c.first + 1}\\u2013${c.last + 1}` : `token ${c.first + 1}`;
  const share = c.judged ? `held by ${c.held} of ${c.all} heads (${percent(c.held / c.all)})` : "not yet judged";
  said.replaceChildren(shown, ` ${which} of ${c.run.tokens}, ${c.run.classes[c.first]}: ${share}`);
}

function tint(cell, ratio) {
  cell.classList.remove("more", "less");
  if (ratio === null) return;
  cell.classList.add(ratio >= 1 ? "more" : "less");
  cell.style.setProperty("--s", ratio > 0 ? Math.min(1, Math.abs(Math.log(ratio) / Math.log(4))).toFixed(2) : 1);
}

function fill(cell) {
  const { text, key } = cell.dataset, value = data[text].tables[+select.value][cell.dataset.class][key];
  const shown = key === "share" ? percent(value) : value === null ? "\\u2013" : value.toFixed(2);
  cell.firstChild.data = shown + (cell.firstChild.data.endsWith("*") ? "*" : "");
  if (key !== "share") tint(cell, value);
}

function show() {
  for (const span of tokens) {
    const c = count(span);
    if (!c.judged) continue;
    span.style.setProperty("--s", (c.held / c.all).toFixed(3));
    span.title = `${c.run.classes[c.first]}, ${percent(c.held / c.all)} kept`;
  }
  document.querySelectorAll("[data-key]").forEach(fill);
  for (const mean of document.querySelectorAll("[data-mean]"))
    mean.textContent = percent(data[mean.dataset.text].means[+select.value]);
  document.querySelectorAll("rect.bar").forEach(draw);
  tell(chosen);
}

// a bar of the share kept along the text
function draw(bar) {
  const run = data[bar.dataset.text], layer = +select.value, rows = layer ? [run.kept[layer - 1]] : run.kept;
  const from = +bar.dataset.from, to = +bar.dataset.to;
  let held = 0;
  for (const row of rows) for (let i = from; i < to; i++) held += row[i];
  const share = held / (rows.length * run.heads * (to - from));
  bar.setAttribute("y", 1 - share);
  bar.setAttribute("height", share);
  bar.firstElementChild.textContent = `tokens ${from + 1} to ${to}: ${percent(share)} kept`;
}

// a click on the chart along the text goes to that place
document.addEventListener("click", event => {
  const chart = event.target.closest("figure svg");
  if (!chart) return;
  const box = chart.getBoundingClientRect(), run = data[chart.querySelector("rect").dataset.text];
  const wanted = Math.floor((event.clientX - box.left) / box.width * run.judged);
  const inside = [...chart.closest("section").querySelectorAll(".text [data-i]")];
  const span = inside.findLast(known => +known.dataset.i <= wanted) ?? inside[0], text = span.parentElement;
  text.scrollTop = span.offsetTop - text.offsetTop - text.clientHeight / 3;
  tell(span);
});

const at = event => event.target.closest(".text [data-i]");
for (const kind of ["pointerover", "click"])
  document.addEventListener(kind, event => { const span = at(event); if (span) tell(span); });
document.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const box = document.activeElement?.closest(".text");
  if (!step || !box) return;
  const inside = [...box.querySelectorAll("[data-i]")], place = inside.indexOf(chosen);
  const next = inside[place < 0 ? 0 : Math.min(inside.length - 1, Math.max(0, place + step))];
  event.preventDefault();
  next.scrollIntoView({ block: "nearest" });
  tell(next);
});
select.addEventListener("change", show);
document.querySelectorAll("[data-script]").forEach(part => { part.hidden = false; });
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What is forgotten</title>
<style>$style</style>
</head>
<body>
<main>
<h1>What is forgotten</h1>
<p>$summary</p>
<div class="controls">
<label data-script hidden>Show <select id="layer">$options</select></label>
<div class="legend"><em>Share of heads that hold a token:</em><span style="--s:0">0%</span><span
style="--s:.25">25%</span><span style="--s:.5">50%</span><span style="--s:.75">75%</span><span
style="--s:1">100%</span><span class="new">not yet judged</span></div>
</div>
<div class="texts">$texts</div>
$comparison
<section class="meaning" aria-labelledby="numbers">
<h2 id="numbers">What each number is</h2>
<dl>
<dt>token</dt><dd>A piece of text as the model reads it: a word, a part of one, a mark, a run of spaces. The sign
&#8629; stands for a line end.</dd>
<dt>kept</dt><dd>For a token: the share of heads, of all layers or of the chosen one, that still hold it. For a class or
a text: the mean of that over its tokens.</dd>
<dt>ratio</dt><dd>What was kept of the class, divided by what was kept of the whole text. 1 is no preference, 2 is
twice as much.</dd>
<dt>neighbours</dt><dd>The same, but divided by what was kept of all tokens read between the same two decisions. Young
tokens have been judged less often, and many memories keep them whatever they are; this number leaves most of that out.
With one decision only, it is the ratio itself.</dd>
<dt>not yet judged</dt><dd>Tokens read since the last decision. All heads still hold them, so they count in no
number.</dd>
<dt>* after a class or a number</dt><dd>Fewer than $few tokens: mostly chance.</dd>
</dl>
</section>
</main>
<output data-script hidden>Point at or tap a token. In a text, the arrow keys go from token to token.</output>
<script type="application/json" id="data">$data</script>
<script>$script</script>
</body>
</html>
"""
