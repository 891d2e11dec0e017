"use strict";
// The chosen experts among the controls: bars in order of size.
(function () {
  const controls = M.data.controls;
  if (!controls || !controls.draws.length) return;
  const MOST = 40;
  const words = M.data.words.map((w, i) => ({ ...w, i })).filter((w) => w.word.main);
  M.state.measure = "kl";
  const mine = M.data.uses.map((u) => u.expert);
  const named = (experts) => (experts.length > 3 ? `${experts.slice(0, 3).join(" ")} +${experts.length - 3}` : experts.join(" "));

  function rowsOf(measure) {
    const value = (d) => (measure === "kl" ? d.kl : d.word_changes[measure]);
    const own = { experts: mine, kl: M.data.kl, word_changes: M.data.words.map((w) => w.shift.logit_change), positions: d3.sum(M.data.uses, (u) => u.chosen_before), own: true };
    return d3.sort([own, ...controls.draws].map((d, i) => ({
      key: i, name: named(d.experts), all: d.experts.join(" "), own: Boolean(d.own), value: value(d), positions: d.positions,
    })), (r) => -Math.abs(r.value));
  }

  M.figure("controls", ["measure"], () => {
    const kl = M.state.measure === "kl";
    const rows = rowsOf(M.state.measure);
    const stands = kl ? controls.kl : controls.words[M.state.measure];
    const what = kl ? "KL" : `|Δ logit| of ${M.shown(M.data.words[M.state.measure].word.text)}`;
    const format = kl ? M.fmt.small : M.fmt.signed;
    const drawn = rows.filter((r, i) => i < MOST || r.own);
    M.title("controls", `${what}: number ${stands.rank} of ${rows.length}, p = ${M.fmt.p(stands.p)}`,
      `the same edit on ${controls.draws.length} other experts of the same layers · the smallest p that so many can give is ${M.fmt.p(controls.p_lowest ?? 1 / rows.length)}`);
    const width = M.width("controls");
    const left = Math.min(7 * d3.max(drawn, (r) => r.name.length) + 20, width * 0.4);
    const plot = Plot.plot({
      width, height: 21 * drawn.length + 52, marginLeft: left, marginRight: 62, marginTop: 6, marginBottom: 40, ariaLabel: `${what} of the edit and of its controls`,
      style: { background: "transparent", fontSize: "12px", fontFamily: "inherit" },
      x: { grid: true, tickSize: 0, labelArrow: "none", label: kl ? "KL(before‖after), nats →" : "change of the logit →", nice: true, ticks: Math.max(3, Math.floor(width / 110)), tickFormat: M.ticks() },
      y: { domain: drawn.map((r) => r.key), axis: null, padding: 0.3 },
      marks: [
        Plot.barX(drawn, { x: "value", y: "key", fill: (r) => (r.own ? M.after() : M.css("grey")), fillOpacity: (r) => (r.own ? 1 : 0.6) }),
        Plot.text(drawn, { y: "key", text: "name", frameAnchor: "left", textAnchor: "end", dx: -8, fontWeight: (r) => (r.own ? 700 : 400) }),
        Plot.ruleX([0], { stroke: "currentColor", strokeOpacity: 0.5 }),
        Plot.tip(drawn, Plot.pointerY({ x: "value", y: "key", title: (r) => `${r.all}${r.own ? " (the edit)" : ""}\n${what} ${format(r.value)}\nchosen ${r.positions} times there before`, maxRadius: 40 })),
      ],
    });
    M.fill(M.id("plot-controls"), plot, M.legend([{ color: M.after(), label: "the edit" }, { color: M.css("grey"), label: "controls" }]),
      drawn.length < rows.length ? M.absent(`The ${MOST} largest of ${rows.length}; the table has all.`) : null);
    M.asTable("controls", [
      { key: "all", label: "experts", text: true, render: (r) => (r.own ? `${r.all} ◂ the edit` : r.all) }, { key: "value", label: what, format }, { key: "positions", label: "chosen there before", format: M.fmt.count },
    ], () => rows);
  }, () => {
    if (words.length) M.id("controls-controls").append(M.choice("Show", "measure", [{ value: "kl", label: "KL" }, ...words.map((w) => ({ value: w.i, label: `Δ logit ${M.shown(w.word.text)}` }))]));
  });
})();
