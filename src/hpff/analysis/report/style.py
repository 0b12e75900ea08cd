"""How reports and their charts look, in light and in dark."""

from __future__ import annotations

COLORS = 10  # Series and classes take turns with so many.

_LIGHT = """\
--paper: #fdfdfc; --ink: #1d2126; --soft: #5c646e; --rule: #dfe3e8; --tint: #f3f5f7;
--c0: #1f5fa8; --c1: #c4521a; --c2: #2b8055; --c3: #8a3f97; --c4: #a8770a;
--c5: #0e8597; --c6: #b8325e; --c7: #5b6b1a; --c8: #6a54c8; --c9: #6d6d6d;"""
_DARK = """\
--paper: #14171a; --ink: #e6e8ea; --soft: #a0a8b0; --rule: #343a41; --tint: #1d2126;
--c0: #6ea8e8; --c1: #f0915c; --c2: #6cc497; --c3: #c98ad4; --c4: #dcb04e;
--c5: #5cc3d2; --c6: #ee7d9f; --c7: #a8ba5f; --c8: #a898f2; --c9: #b0b0b0;"""

THEME = f"""\
:root {{ color-scheme: light dark; {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_DARK} }} }}
"""
_SERIES = "\n".join(
    f".s{i} {{ stroke: var(--c{i}); }} .f{i} {{ fill: var(--c{i}); }}" for i in range(COLORS)
)
CHART = f"""\
svg {{ font: 12px system-ui, sans-serif; }}
svg text {{ fill: var(--soft); }}
.axis {{ stroke: var(--soft); stroke-width: 1; fill: none; }}
.rule {{ stroke: var(--rule); stroke-width: 1; fill: none; }}
.line {{ fill: none; stroke-width: 1.8; stroke-linejoin: round; }}
.dashed {{ stroke-dasharray: 5 3; }}
.area {{ opacity: .18; }}
{_SERIES}
"""

PAGE = """\
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 2rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; font-weight: 650; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .3rem; padding-top: 1rem; font-weight: 650;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem; font-weight: 650; }
p { margin: .3rem 0 1rem; max-width: 46rem; }
.soft, figcaption { color: var(--soft); }
pre { background: var(--tint); padding: .7rem .9rem; border-radius: 6px; overflow-x: auto;
  font: 13px/1.5 ui-monospace, monospace; }
.grid-of { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .8rem; }
figure { margin: 0; min-width: 0; }
.grid-of > figure { display: grid; grid-row: span 3; grid-template-rows: subgrid; gap: 0;
  align-content: start; }
figcaption { font-size: .88rem; line-height: 1.4; padding-bottom: .4rem; }
figcaption b { color: var(--ink); display: block; font-size: .95rem; font-weight: 600; }
figure svg { width: 100%; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem .9rem; font-size: .85rem; margin: .3rem 0;
  padding: 0; list-style: none; }
.legend svg { width: 22px; height: 10px; margin-right: .35rem; display: inline-block; }
.scroll { overflow-x: auto; margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; text-align: right; border-bottom: 1px solid var(--rule);
  white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
.facts td, .facts th { white-space: normal; text-align: left; vertical-align: top; }
.facts td { overflow-wrap: anywhere; }
.numbers { display: flex; flex-wrap: wrap; gap: 1rem 2.4rem; margin: 1.2rem 0; padding: 0; }
.numbers div { min-width: 6rem; }
.numbers dt { color: var(--soft); font-size: .85rem; }
.numbers dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
details { margin: .6rem 0; }
summary { cursor: pointer; color: var(--soft); }
.maps td, .maps th { text-align: center; padding: .2rem .3rem .2rem 0; border: 0; }
.maps th:first-child { text-align: left; white-space: normal; min-width: 6.5rem; }
.maps img { width: 84px; height: 84px; display: block; border-radius: 4px; }
img.pixels { image-rendering: pixelated; }
img.scale { width: 8rem; height: .7rem; vertical-align: middle; border-radius: 3px; }
@media print { body { max-width: none; } figure { break-inside: avoid; } }
"""
