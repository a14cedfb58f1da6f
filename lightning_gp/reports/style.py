"""How the page looks: one column on a telephone, figures side by side where there is room."""

STYLE = """<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; color: #1c2430;
  background: #fff; max-width: 72rem; margin: 0 auto; padding: 0 1rem 3rem; overflow-wrap: break-word; }
header { border-bottom: 2px solid #1f5fa8; margin: 1.2rem 0 0; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
header p { margin: .2rem 0 .8rem; color: #4a5563; }
h2 { font-size: 1.25rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .2rem; }
p, li { max-width: 46rem; }
.note { color: #4a5563; font-size: .9rem; }
.figures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; max-width: 32rem; }
figure img { width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: #3a4450; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
pre { font: .82rem/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  background: #f4f6f8; padding: .8rem; overflow-x: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .9rem .25rem 0; border-bottom: 1px solid #dde2e8; }
.odd { color: #b00020; }
@media (min-width: 40rem) {
  .wide td:nth-child(-n + 4), th { white-space: nowrap; }
}
@media (max-width: 40rem) {
  .wide thead { display: none; }
  .wide tr { display: block; padding: .4rem 0; border-bottom: 1px solid #dde2e8; }
  .wide td { display: block; border: 0; padding: .05rem 0; }
  .wide td[data-label]:not(:first-child):not(:empty)::before { content: attr(data-label) ": "; color: #4a5563; }
  .wide td:empty { display: none; }
  th, td { padding-right: .6rem; }
}
@media print { details > *:not(summary) { display: block; } }
</style>"""
