"""The look of the report: one column on a phone, system fonts, light and dark."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1e24; --soft: #626a78; --rule: #e2e5ea; --tint: #f5f6f8;
  --line0: #1f6feb; --line1: #7a8290; --line2: #d9730d; --line3: #8a63d2; --line4: #12847b;
  --pass: #1a7f37; --fail: #c62f2f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161b; --ink: #e6e8ec; --soft: #9aa3b2; --rule: #2b2f38;
  --tint: #1c1f26; --line0: #5aa2ff; --line1: #98a1b0; --line2: #f0954a; --line3: #b497f0; --line4: #4fc3b8;
  --pass: #4cc26b; --fail: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 72px; }
h1 { font-size: clamp(1.6rem, 5vw, 2.3rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 12px; }
h2 { font-size: 1.3rem; letter-spacing: -.01em; margin: 0 0 8px; }
h3 { font-size: .95rem; margin: 28px 0 10px; }
p { margin: 0 0 12px; max-width: 46em; }
section { border-top: 1px solid var(--rule); margin-top: 36px; padding-top: 28px; }
figure { margin: 0; }
.lead { font-size: 1.08rem; max-width: 42em; }
.note, figcaption, .legend, small { color: var(--soft); font-size: .875rem; }
.facts { display: flex; flex-wrap: wrap; gap: 12px 32px; margin: 20px 0 0; }
.facts dt { color: var(--soft); font-size: .8rem; }
.facts dd { margin: 0; font-size: .95rem; }
.rules { list-style: none; margin: 0; padding: 0; }
.rules li { display: flex; gap: 12px; align-items: baseline; padding: 7px 0; border-top: 1px solid var(--rule); }
.rules b { flex: none; width: 5em; text-align: center; font-size: .8rem; border: 1px solid; border-radius: 4px; }
.pass b { color: var(--pass); }
.fail b { color: var(--fail); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: center; }
.legend span { display: inline-flex; gap: 6px; align-items: center; }
.legend i { width: 12px; height: 12px; border-radius: 3px; }
.legend svg { width: 26px; height: 8px; }
.clips { display: grid; gap: 18px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.clips img, .strip img { width: 100%; height: auto; display: block; image-rendering: pixelated; }
.clips img { border-radius: 6px; }
.clips figcaption { margin-top: 4px; }
.strip { display: grid; gap: 6px; grid-template-columns: repeat(8, 1fr); }
.strip figcaption { text-align: center; font-size: .75rem; }
.charts { display: grid; gap: 28px 32px; margin-top: 28px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
.chart figcaption { color: var(--ink); font-weight: 600; font-size: .95rem; }
.chart small { font-weight: 400; margin-left: 4px; }
.chart > svg { width: 100%; height: auto; display: block; margin-top: 6px; }
.chart text { fill: var(--soft); font-size: 13px; }
.grid { stroke: var(--rule); }
.axis { stroke: var(--soft); }
.line { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.line0 { stroke: var(--line0); stroke-width: 2.5; }
.line1 { stroke: var(--line1); stroke-dasharray: 6 5; }
.line2 { stroke: var(--line2); }
.line3 { stroke: var(--line3); stroke-dasharray: 1 5; }
.line4 { stroke: var(--line4); }
.line5 { stroke: var(--line2); stroke-dasharray: 6 5; }
.line6 { stroke: var(--line3); stroke-dasharray: 6 5; }
.line7 { stroke: var(--line4); stroke-dasharray: 6 5; }
.table { overflow-x: auto; margin-top: 16px; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: right; padding: 7px 10px; border-bottom: 1px solid var(--rule); font-weight: 400; }
th:first-child { text-align: left; padding-left: 0; min-width: 11em; }
thead th { font-weight: 600; vertical-align: bottom; border-bottom: 1px solid var(--soft); }
td:nth-child(2) { font-weight: 600; }
.table + .note { margin-top: 8px; }
td { white-space: nowrap; }
pre { background: var(--tint); border-radius: 6px; padding: 14px 16px; overflow-x: auto; font-size: .82rem;
  line-height: 1.5; margin: 0; }
details { margin-top: 20px; }
summary { cursor: pointer; font-size: .95rem; font-weight: 600; margin-bottom: 10px; }
@media (max-width: 600px) { .strip { grid-template-columns: repeat(4, 1fr); } table { font-size: .8rem; }
  th, td { padding: 6px 0 6px 8px; } th:first-child { min-width: 7em; } }
"""
