"""The style sheet of the evaluation page. Line colours are Okabe and Ito's, made darker or lighter for contrast."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfa; --card: #ffffff; --ink: #22272e; --soft: #5d6670; --rule: #e3e4e0; --grid: #ebece8;
  --accent: #0b6b8a; --better: #00618f; --worse: #b04a00; --tag: #eef3f5;
  --learned-0: #c2410c; --learned-1: #8a3ffc; --learned-2: #9b1c4a;
  --line-0: #0072b2; --line-1: #009070; --line-2: #b07a00; --line-3: #b0568f; --line-4: #3c93c8; --line-5: #6f7d1c;
  --plain: #7d8691;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1a1e22; --ink: #dde2e7; --soft: #9aa4ae; --rule: #2d3339; --grid: #262b30;
    --accent: #6cc3dd; --better: #6cbdf0; --worse: #f0a060; --tag: #222a30;
    --learned-0: #ff8a4c; --learned-1: #b99bff; --learned-2: #ff7ba6;
    --line-0: #4fa8e0; --line-1: #2fc79e; --line-2: #e0ac3a; --line-3: #dc93c0; --line-4: #8accf2; --line-5: #b3c04d;
    --plain: #8b95a0;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 0.4rem; overflow-wrap: anywhere; }
h2 {
  font-size: 1.35rem; line-height: 1.3; margin: 3.5rem 0 0.6rem; padding-top: 1.2rem;
  border-top: 1px solid var(--rule);
}
h3 { font-size: 1.08rem; margin: 2.4rem 0 0.5rem; }
p, dd { max-width: 46rem; }
a { color: var(--accent); text-underline-offset: 0.18em; }
.soft, figcaption, .notes, caption { color: var(--soft); font-size: 0.9rem; }
.sub { color: var(--soft); margin: 0 0 1.6rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: 0.3rem 1.4rem; padding: 0; margin: 1.2rem 0; }
.brief { padding: 1rem 1.25rem; background: var(--tag); border-radius: 10px; margin: 1.4rem 0; }
.brief h3 { font-size: 0.95rem; margin: 0.9rem 0 0; }
.brief h3:first-child { margin-top: 0; }
.brief ul { margin: 0.3rem 0 0; padding-left: 1.1rem; }
.brief li { margin: 0.35rem 0; max-width: 60rem; }
.brief strong { font-weight: 600; }
dl.columns {
  display: grid; grid-template-columns: max-content 1fr; gap: 0.35rem 1.4rem; margin: 0.8rem 0; font-size: 0.94rem;
}
dl.columns dt { font-weight: 600; }
dl.columns dd { margin: 0; }
figure { margin: 1.4rem 0; min-width: 0; }
figcaption { margin: 0 0 0.4rem; }
figcaption b { color: var(--ink); font-size: 1rem; font-weight: 600; }
.small { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 0.6rem 1.6rem; }
.small figure { margin: 0.4rem 0; }
svg { display: block; width: 100%; height: auto; font-family: inherit; overflow: visible; }
.narrow { display: none; }
.legend {
  display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; padding: 0; margin: 0.6rem 0 0.2rem; list-style: none;
  font-size: 0.86rem;
}
.legend li { display: flex; align-items: center; gap: 0.4rem; }
.swatch { width: 26px; height: 14px; flex: none; }
svg .grid { stroke: var(--grid); fill: none; stroke-width: 1; }
svg text { font-size: 12px; }
svg .tick { fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .label, svg .near {
  fill: var(--hue); fill: color-mix(in srgb, var(--hue) 72%, var(--ink)); font-weight: 500;
  paint-order: stroke; stroke: var(--paper); stroke-width: 3px;
}
svg .line { fill: none; stroke: var(--hue); stroke-width: 1.7; stroke-linejoin: round; }
svg .mark { fill: var(--hue); stroke: var(--paper); stroke-width: 1; }
svg .whisker { stroke: var(--hue); stroke-width: 1.5; opacity: 0.6; }
svg .tie { stroke: var(--hue); stroke-width: 0.8; opacity: 0.5; fill: none; }
svg g:hover > .line { stroke-width: 3.2; }
.learned .line { stroke-width: 3; }
.learned .label { font-weight: 700; }
.own .mark { fill: var(--paper); stroke: var(--hue); stroke-width: 2; }
.full { --hue: var(--ink); }
.oracle { --hue: var(--ink); }
.oracle .line { stroke-dasharray: 6 4; }
.floor { --hue: var(--plain); }
.floor .line { stroke-width: 1; }
.random, .truncated { --hue: var(--plain); }
.random .line { stroke-dasharray: 1.5 4; stroke-linecap: round; stroke-width: 2; }
.truncated .line { stroke-dasharray: 8 3 2 3; }
.learned-0 { --hue: var(--learned-0); } .learned-1 { --hue: var(--learned-1); } .learned-2 { --hue: var(--learned-2); }
.line-0 { --hue: var(--line-0); } .line-1 { --hue: var(--line-1); } .line-2 { --hue: var(--line-2); }
.line-3 { --hue: var(--line-3); } .line-4 { --hue: var(--line-4); } .line-5 { --hue: var(--line-5); }
.box {
  overflow-x: auto; border: 1px solid var(--rule); border-radius: 10px; background: var(--card); margin: 0.7rem 0;
  -webkit-overflow-scrolling: touch;
}
.box:focus-visible, summary:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: 0.88rem; line-height: 1.35; }
th, td {
  padding: 0.5rem 0.62rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums;
  vertical-align: top;
}
thead th { font-weight: 600; color: var(--soft); border-bottom: 1px solid var(--rule); vertical-align: bottom; }
thead th a { color: inherit; text-decoration: underline dotted; }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
th:first-child {
  position: sticky; left: 0; background: var(--card); text-align: left; font-weight: 500; z-index: 1;
  border-right: 1px solid var(--rule); white-space: normal; min-width: 9rem;
}
tr.learned th:first-child { font-weight: 700; }
tr.learned > *, tr.learned th:first-child { background: var(--tag); }
td small { display: block; color: var(--soft); font-size: 0.82em; }
td .refused, td .none { color: var(--soft); }
td .refused { font-style: italic; }
td .better { color: var(--better); font-weight: 600; }
td .worse { color: var(--worse); font-weight: 600; }
.tag { display: block; font-size: 0.78rem; font-weight: 400; color: var(--soft); }
details { margin: 0.6rem 0; }
summary { cursor: pointer; color: var(--accent); padding: 0.25rem 0; }
details details { margin-left: 1rem; }
.notes { padding-left: 1.1rem; margin: 0.6rem 0; }
.notes li { max-width: 60rem; margin: 0.15rem 0; }
.facts th:first-child { color: var(--soft); width: 15rem; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
@media (max-width: 720px) {
  body { font-size: 15px; }
  main { padding: 1.5rem 1rem 3rem; }
  h1 { font-size: 1.5rem; }
  .wide { display: none; }
  .narrow { display: block; }
  dl.columns { grid-template-columns: 1fr; gap: 0; }
  dl.columns dd { margin-bottom: 0.6rem; }
  th, td { padding: 0.45rem 0.55rem; }
  th:first-child, .facts th:first-child {
    width: auto; min-width: 7rem; max-width: 8.5rem; overflow-wrap: anywhere;
  }
  details details { margin-left: 0; }
}
@media print { .box { overflow: visible; } nav { display: none; } }
"""
