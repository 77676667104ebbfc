"""How pages look: one style sheet for light and dark, and the one script, which sorts tables."""

STYLE = """
:root {
  --paper: #fcfcfb; --card: #ffffff; --ink: #1d2023; --soft: #5d656d; --line: #e2e4e6;
  --accent: #2a62d8; --other: #c2571a; --bad: #c5303a; --warn: #a86a00; --good: #22804a;
  --fill: #e9effc; --track: #eff0f1; --heat: 42, 98, 216; --wrong: 197, 48, 58;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --card: #1b1f23; --ink: #e7e9eb; --soft: #9aa3ab; --line: #2e343a;
    --accent: #7ea6ff; --other: #f0975c; --bad: #ff7a80; --warn: #e8b04a; --good: #62c98b;
    --fill: #222c42; --track: #262b30; --heat: 126, 166, 255; --wrong: 255, 122, 128;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 64px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 4px; letter-spacing: -.005em; }
h3 { font-size: 15px; margin: 22px 0 6px; }
p { margin: 6px 0; }
.subtitle, .lead, .soft { color: var(--soft); }
.subtitle { overflow-wrap: anywhere; }
.lead { max-width: 78ch; margin-bottom: 14px; }
code { font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  background: var(--track); border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere; }
.tiles { display: grid; gap: 10px; margin: 18px 0 4px;
  grid-template-columns: repeat(auto-fit, minmax(104px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 10px 14px; }
.tile b { display: block; font-size: 24px; line-height: 1.25; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
em { font-style: normal; font-variant-numeric: tabular-nums; } .tile em { font-size: 13px; }
.better { color: var(--good); } .worse { color: var(--bad); }
.scroll { overflow-x: auto; margin: 10px 0; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.sortable th { cursor: pointer; }
.sortable th:hover, th[aria-sort] { color: var(--ink); }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
.charts { display: grid; gap: 14px 28px; margin: 10px 0;
  grid-template-columns: repeat(auto-fit, minmax(min(310px, 100%), 1fr)); }
.charts.narrow { grid-template-columns: repeat(auto-fit, minmax(min(236px, 100%), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { font-size: 13.5px; color: var(--soft); margin: 0 0 4px; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg .line { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
svg .line.b { stroke: var(--other); stroke-dasharray: 5 3; }
svg .line.each { stroke: var(--soft); stroke-width: 1; opacity: .35; }
svg .line.each:hover { opacity: 1; stroke: var(--accent); stroke-width: 2; }
svg .dot { fill: var(--accent); } svg .dot.b { fill: var(--other); }
svg .bar { fill: var(--accent); } svg .bar.b { fill: var(--other); }
.legend { font-size: 13px; color: var(--soft); margin: 2px 0 8px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  background: var(--accent); margin: 0 6px 0 0; vertical-align: -1px; }
.legend i.b { background: var(--other); }
.legend span { display: inline-block; margin-right: 16px; overflow-wrap: anywhere; }
.rows { display: grid; grid-template-columns: minmax(90px, max-content) 1fr max-content;
  gap: 6px 12px; align-items: center; font-size: 14px; margin: 8px 0; }
.rows .name { overflow-wrap: anywhere; }
.track { background: var(--track); border-radius: 4px; height: 12px; overflow: hidden; }
.track + .track { margin-top: 2px; }
.track i { display: block; height: 100%; background: var(--accent); border-radius: 4px; }
.track i.b { background: var(--other); }
.finding { background: var(--card); border: 1px solid var(--line); border-left-width: 4px;
  border-radius: 8px; padding: 12px 18px 14px; margin: 14px 0; }
.finding.error { border-left-color: var(--bad); }
.finding.warning { border-left-color: var(--warn); }
.finding h3 { margin: 0 0 4px; font-size: 16.5px; overflow-wrap: anywhere; }
.finding p { max-width: 90ch; overflow-wrap: anywhere; }
.badge { font-size: 12px; font-weight: 600; margin-right: 8px; letter-spacing: .02em; }
.badge.error { color: var(--bad); } .badge.warning { color: var(--warn); }
.badge.note { color: var(--soft); }
.records { font-size: 13.5px; }
.records td { overflow-wrap: anywhere; min-width: 110px; max-width: 460px; }
.records td:first-child { min-width: 180px; }
.pictures { display: grid; gap: 12px; margin: 12px 0 2px;
  grid-template-columns: repeat(auto-fill, minmax(min(230px, 100%), 1fr)); }
.pairs { display: grid; gap: 18px 22px; margin: 10px 0;
  grid-template-columns: repeat(auto-fill, minmax(min(500px, 100%), 1fr)); }
.pair { display: grid; gap: 4px; grid-template-columns: repeat(auto-fit, minmax(0, 1fr));
  grid-auto-flow: column; }
.pairs.wide { grid-template-columns: 1fr; }
.pair span { font-size: 12px; color: var(--soft); }
.masks { display: flex; flex-wrap: wrap; gap: 6px; margin-top: 6px; }
.masks div { width: 64px; } .masks img { image-rendering: pixelated; }
.masks span { display: block; font-size: 11px; color: var(--soft); overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
img { display: block; width: 100%; height: auto; border-radius: 4px; background: var(--track); }
.absent { display: grid; place-items: center; min-height: 120px; border-radius: 4px;
  background: var(--track); color: var(--soft); font-size: 13px; padding: 10px; text-align: center;
  overflow-wrap: anywhere; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--accent); }
.matrix td, .matrix th { padding: 4px 7px; text-align: right; border: 1px solid var(--paper);
  font-variant-numeric: tabular-nums; min-width: 38px; }
.matrix th { text-align: right; max-width: 170px; overflow: hidden; text-overflow: ellipsis; }
.matrix thead th { vertical-align: bottom; }
.matrix .diagonal { font-weight: 600; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 7px; }
@media (max-width: 600px) {
  main { padding: 20px 14px 48px; } h1 { font-size: 22px; } h2 { margin-top: 34px; }
  .tile b { font-size: 20px; } .finding { padding: 10px 12px 12px; }
  .rows { grid-template-columns: 1fr max-content; gap: 3px 10px; }
  .rows .name { grid-column: 1 / -1; margin-top: 4px; }
  .pair { grid-auto-flow: row; grid-template-columns: 1fr 1fr; }
  th, td { padding-right: 10px; } .records td { min-width: 88px; }
}
@media print { details:not([open]) > * { display: block; } .finding { break-inside: avoid; } }
"""

# Rows go by the numbers of a column where it has some, else by its texts.
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  table.tHead.rows[0].querySelectorAll("th").forEach((head, column) => {
    head.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const text = row.cells[column].textContent.trim(), number = parseFloat(text);
        return column === 0 ? text : isNaN(number) ? -Infinity : number;
      };
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const x = value(a), y = value(b), order = x < y ? -1 : x > y ? 1 : 0;
        return down ? -order : order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}
"""
