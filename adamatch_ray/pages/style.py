"""The look of `report.html`: one sheet, light and dark, from phones to wide screens, without anything from outside."""

CSS = """
:root { --paper:#fbfaf7; --card:#fff; --ink:#22262b; --soft:#68707a; --line:#e4e1da; --ours:#2f6f73; --beside:#c08a3e;
  --good:#3b7a57; --bad:#a8483f; --warn:#fdf3df; --warnline:#e8cf9a; }
@media (prefers-color-scheme: dark) { :root { --paper:#15181b; --card:#1c2024; --ink:#e6e4df; --soft:#9aa2ab;
  --line:#2e3439; --ours:#6fb3b5; --beside:#d9a963; --good:#7fbf9b; --bad:#dd8a80;
  --warn:#2b2619; --warnline:#5b4d2a; } }
* { box-sizing:border-box; }
html { -webkit-text-size-adjust:100%; }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
  "Helvetica Neue",sans-serif; }
main { max-width:62rem; margin:0 auto; padding:2.5rem 1.25rem 4rem; }
h1,h2,h3 { font-weight:600; line-height:1.2; letter-spacing:-.01em; }
h1 { font-size:clamp(1.6rem,5vw,2.3rem); margin:.2rem 0 .5rem; }
h2 { font-size:1.35rem; margin:3.2rem 0 .3rem; padding-top:1.2rem; border-top:1px solid var(--line); }
h3 { font-size:1rem; margin:2rem 0 .6rem; }
p { margin:.4rem 0 .9rem; max-width:44rem; }
.soft,.differs,figcaption,small { color:var(--soft); }
.differs { font-size:.9rem; }
.over { font-size:.8rem; letter-spacing:.08em; text-transform:uppercase; color:var(--soft); }
.banner { background:var(--warn); border:1px solid var(--warnline); border-radius:.6rem; padding:.8rem 1rem;
  margin:1.2rem 0; }
.banner p { margin:0; max-width:none; }
nav { display:flex; flex-wrap:wrap; gap:.3rem 1.1rem; margin:1rem 0 0; font-size:.92rem; }
a { color:var(--ours); text-underline-offset:.15em; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr)); gap:.8rem; margin:1.6rem 0; }
.tile,.case,.pair { background:var(--card); border:1px solid var(--line); border-radius:.6rem; }
.tile { padding:.9rem 1rem; }
.tile b { display:block; font-size:1.75rem; font-weight:600; font-variant-numeric:tabular-nums; line-height:1.3; }
.tile span { display:block; font-size:.82rem; color:var(--soft); }
.tile .what { color:var(--ink); font-size:.88rem; }
table { border-collapse:collapse; width:100%; font-size:.92rem; font-variant-numeric:tabular-nums;
  margin:1rem 0 .6rem; }
th { text-align:left; font-weight:500; color:var(--soft); font-size:.8rem; }
th,td { padding:.45rem .8rem .45rem 0; border-bottom:1px solid var(--line); vertical-align:baseline; }
td.n { font-weight:600; } td.n,td.i { white-space:nowrap; }
code { font-size:.78rem; color:var(--soft); overflow-wrap:anywhere; }
.bars { display:grid; gap:.35rem; margin:.8rem 0 1.2rem; max-width:44rem; }
.bar { display:grid; grid-template-columns:minmax(7rem,12rem) 1fr 3.6rem; gap:.7rem; align-items:center;
  font-size:.88rem; }
.bar .track { position:relative; height:.7rem; border-radius:.35rem; background:var(--line); }
.bar .track i { position:absolute; inset:0 auto 0 0; border-radius:.35rem; background:var(--ours); }
.bar .track b { position:absolute; top:-.2rem; bottom:-.2rem; width:3px; margin-left:-1px; border-radius:2px;
  background:var(--beside); }
.bar .n { text-align:right; font-variant-numeric:tabular-nums; }
.bar small { display:block; font-size:.76rem; line-height:1.2; }
.key { display:flex; flex-wrap:wrap; gap:.2rem 1.2rem; font-size:.82rem; color:var(--soft); margin:.3rem 0; }
.key i { display:inline-block; width:.7rem; height:.7rem; border-radius:50%; margin-right:.4rem;
  vertical-align:-.05rem; }
.ours { background:var(--ours); fill:var(--ours); } .beside { background:var(--beside); fill:var(--beside); }
figure { margin:1rem 0; } figure svg { width:100%; max-width:34rem; height:auto; display:block;
  background:var(--card); border:1px solid var(--line); border-radius:.6rem; }
figcaption { font-size:.84rem; margin-top:.4rem; max-width:34rem; }
.pairs { display:grid; grid-template-columns:repeat(auto-fill,minmax(15.5rem,1fr)); gap:.9rem; margin:1rem 0; }
.pair { padding:.6rem; } .pair .two { display:grid; grid-template-columns:1fr 1fr; gap:.3rem; }
.pair img,.case img { width:100%; aspect-ratio:1; object-fit:contain; background:#000; border-radius:.35rem;
  display:block; }
.two small { display:block; text-align:center; font-size:.74rem; margin-top:.15rem; }
.none { aspect-ratio:1; border-radius:.35rem; border:1px dashed var(--line); display:grid; place-items:center;
  color:var(--soft); font-size:.8rem; }
.case small { display:block; margin-top:.4rem; font-size:.76rem; line-height:1.4; overflow-wrap:anywhere; }
.case { display:grid; grid-template-columns:8.5rem 1fr; gap:1rem; padding:.8rem; margin:.8rem 0; }
.case p { margin:.15rem 0 .6rem; font-size:.92rem; }
.case h4,.pair h4 { margin:0; font-size:.8rem; font-weight:500; color:var(--soft); }
.chips { display:flex; flex-wrap:wrap; gap:.3rem; margin:.35rem 0; }
.chip { font-size:.74rem; line-height:1.2; padding:.16rem .5rem; border-radius:1rem; border:1px solid currentColor; }
.found { color:var(--good); } .missed { color:var(--bad); } .invented { color:var(--beside); }
details { font-size:.86rem; } summary { cursor:pointer; color:var(--soft); }
footer { margin-top:3.5rem; padding-top:1.2rem; border-top:1px solid var(--line); font-size:.88rem; color:var(--soft); }
footer ul { columns:16rem; padding-left:1.1rem; }
@media (max-width:40rem) {
  main { padding-top:1.5rem; }
  table,tbody,tr,td { display:block; } thead { display:none; }
  tr { padding:.6rem 0; border-bottom:1px solid var(--line); }
  td { border:0; padding:.05rem 0; } td:empty { display:none; }
  td[data-name]::before { content:attr(data-name) "  "; color:var(--soft); font-weight:400; font-size:.82rem; }
  td.n { font-size:1.1rem; }
  .bar { grid-template-columns:6.6rem 1fr 3.2rem; gap:.5rem; }
  .case { grid-template-columns:5.5rem 1fr; gap:.7rem; }
}
@media print { details { display:none; } .tile,.case,.pair { break-inside:avoid; } }
"""
