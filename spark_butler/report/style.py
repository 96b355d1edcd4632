"""Style and script of the report, which is one file that loads nothing."""

from __future__ import annotations

__all__ = ["CSS", "SCRIPT"]

CSS = """
:root{--bg:#fbfbfa;--card:#fff;--ink:#1d1f23;--soft:#5c6069;--line:#e2e3e6;--good:#0a7a3d;--bad:#b3261e;
--warn:#8a5a00;--c0:#a9adb5;--c1:#2a78d6;--c2:#eb6834;--c3:#1baf7a;--c4:#eda100;--c5:#e87ba4;--c6:#008300;
--c7:#4a3aa7;--s1:#86b6ef;--s2:#184f95;--s3:#5598e7;--s4:#b08a8a;--s6:#eda100;--s7:#1baf7a}
@media (prefers-color-scheme:dark){:root{--bg:#16181c;--card:#1e2126;--ink:#e8e9ec;--soft:#a2a7b1;
--line:#33373e;--good:#5fcf8e;--bad:#ff8a80;--warn:#f0b95a;--c0:#6d727c;--c1:#3987e5;--c2:#d95926;--c3:#199e70;
--c4:#c98500;--c5:#d55181;--c6:#008300;--c7:#9085e9;--s1:#86b6ef;--s2:#256abf;--s3:#b7d3f6;--s4:#b08a8a;
--s6:#c98500;--s7:#199e70}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
main{max-width:1120px;margin:0 auto;padding:24px 20px 64px}
h1{font-size:22px;line-height:1.3;margin:2px 0 6px}
h2{font-size:17px;margin:0 0 10px}
h3{font-size:14px;margin:18px 0 6px}
p{margin:6px 0}
.soft,figcaption,.note{color:var(--soft);font-size:13px}
section{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:16px 18px;
margin-top:16px}
.state{display:inline-block;font-weight:600}
.state.good{color:var(--good)}.state.bad{color:var(--bad)}.state.warn{color:var(--warn)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:10px;margin-top:16px}
.tile{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.tile b{display:block;font-size:20px;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.wide{overflow-x:auto;margin:0 -18px;padding:0 18px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--line);vertical-align:top;
white-space:nowrap;overflow-wrap:normal}
th{font-weight:500;color:var(--soft);font-size:13px}
th:first-child,td:first-child,.text{text-align:left}
td.text{white-space:normal;min-width:15em}
tr:last-child td{border-bottom:0}
tr.sum td{font-weight:600;border-top:1px solid var(--soft)}
.zero{color:var(--soft);opacity:.6}
.bad{color:var(--bad)}.warn{color:var(--warn)}
.key{display:inline-block;width:10px;height:10px;border-radius:2px;margin-right:6px;vertical-align:baseline}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;margin:8px 0;font-size:13px}
.chart{display:block;width:100%;background:color-mix(in srgb,var(--line) 45%,transparent)}
.hist{display:block;width:100%;height:40px}
figure{margin:10px 0}
.axis-labels{display:flex;justify-content:space-between;color:var(--soft);font-size:12px}
.axis{stroke:var(--soft);fill:none;vector-effect:non-scaling-stroke}
.limit{stroke:var(--ink);stroke-dasharray:4 4;fill:none;vector-effect:non-scaling-stroke}
.c0{fill:var(--c0);background:var(--c0)}.c1{fill:var(--c1);background:var(--c1)}
.c2{fill:var(--c2);background:var(--c2)}.c3{fill:var(--c3);background:var(--c3)}
.c4{fill:var(--c4);background:var(--c4)}.c5{fill:var(--c5);background:var(--c5)}
.s1{fill:var(--s1);background:var(--s1)}.s2{fill:var(--s2);background:var(--s2)}
.s3{fill:var(--s3);background:var(--s3)}.s4{fill:var(--s4);background:var(--s4)}
.s5{fill:var(--line);background:var(--line)}.s6{fill:var(--s6);background:var(--s6)}
.s7{fill:var(--s7);background:var(--s7)}
.c6{fill:var(--c6);background:var(--c6)}.c7{fill:var(--c7);background:var(--c7)}
rect.failed,.key.failed{fill:var(--bad);background:var(--bad)}
rect.retried{opacity:.45;stroke:var(--bad);vector-effect:non-scaling-stroke}
.key.retried{background:transparent;border:1px solid var(--bad)}
.dists{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:6px 24px}
details{border-top:1px solid var(--line);padding:8px 0}
details:last-child{padding-bottom:0}
summary{cursor:pointer}
pre{font:12.5px/1.45 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;margin:8px 0;
padding:10px 12px;background:var(--bg);border:1px solid var(--line);border-radius:6px;overflow-x:auto;
white-space:pre;overflow-wrap:normal;max-height:26em}
pre.command{white-space:pre-wrap;overflow-wrap:anywhere}
button{font:inherit;font-size:13px;padding:2px 10px;border:1px solid var(--line);border-radius:6px;
background:var(--card);color:var(--ink);cursor:pointer}
input[type=search]{font:inherit;width:100%;max-width:340px;padding:5px 10px;border:1px solid var(--line);
border-radius:6px;background:var(--bg);color:var(--ink);margin-bottom:8px}
@media (max-width:520px){main{padding:14px 10px 40px}section{padding:14px 12px}
.wide{margin:0 -12px;padding:0 12px}
th,td{padding:5px 8px}.tiles{grid-template-columns:1fr 1fr}td.text{min-width:11em}}
@media print{body{background:#fff}section,.tile{break-inside:avoid}button,input{display:none}}
"""

SCRIPT = """
document.querySelectorAll('button[data-copy]').forEach(function(b){b.hidden=false;b.onclick=function(){
var t=b.previousElementSibling.textContent;
navigator.clipboard&&navigator.clipboard.writeText(t).then(function(){b.textContent='Copied';setTimeout(function(){b.textContent='Copy'},1500)})}});
var f=document.getElementById('find');if(f){f.hidden=false;f.oninput=function(){var t=f.value.toLowerCase();
document.querySelectorAll('details.failure').forEach(function(d){
d.hidden=d.firstElementChild.textContent.toLowerCase().indexOf(t)<0})}}
"""
