"use strict";
// The edit over its strength: lines, and the texts.
(function () {
  const swept = M.data.sweep;
  if (!swept) return;
  const points = swept.points;
  const { unit, neutral } = swept;
  const strength = (v) => (neutral === 0 && v > 0 ? "+" : "") + String(v).replace("-", "−");
  const words = swept.words.map((w, i) => ({ ...w, i, shown: M.shown(w.text) }));
  const chosen = words.some((w) => w.main) ? words.filter((w) => w.main) : words;
  const MEASURES = [
    { value: "kl", title: "KL of the next-token distribution", label: "KL", axis: "KL(before‖after), nats", format: M.fmt.small, lines: () => [line("KL", (p) => p.kl, 1)], zero: true },
    { value: "entropy", title: "Entropy of the next-token distribution", label: "entropy", axis: "entropy, nats", format: M.fmt.two, lines: () => [line("entropy", (p) => p.entropy, 1)] },
    ...(chosen.length ? [
      { value: "logp", title: "Δ log p of the words", label: "words, Δ log p", axis: "Δ log p, nats", format: M.fmt.signed, lines: () => chosen.map((w, n) => line(w.shown, (p) => p.words[w.i].log_prob_change, n)), zero: true },
      { value: "logit", title: "Δ logit of the words", label: "words, Δ logit", axis: "Δ logit", format: M.fmt.signed, lines: () => chosen.map((w, n) => line(w.shown, (p) => p.words[w.i].logit_change, n)), zero: true },
    ] : []),
    { value: "chosen", title: "How often the edited experts are chosen", label: "chosen", axis: "chosen, of the places where the edit holds", format: M.fmt.percent, lines: () => [line("chosen", (p) => (p.places ? p.chosen / p.places : null), 1)], zero: true },
  ];
  const line = (name, of, color) => ({ name, color: M.domainColor(color), rows: points.map((p) => ({ strength: p.strength, value: of(p), name })).filter((r) => r.value !== null) });
  M.state.follow = chosen.length ? "logp" : "kl";

  M.figure("sweep", ["follow"], () => {
    const measure = MEASURES.find((m) => m.value === M.state.follow);
    const lines = measure.lines();
    const rows = lines.flatMap((l) => l.rows);
    const width = M.width("sweep");
    const several = lines.length > 1;
    M.title("sweep", `${measure.title} over the strength`, `${unit} · ${points.length} strengths, each beside the same unedited model`);
    M.fill(M.id("plot-sweep"), Plot.plot({
      width, height: 320, marginLeft: 62, marginRight: 20, marginTop: 26, marginBottom: 40, ariaLabel: `${measure.axis} by strength`,
      style: { background: "transparent", fontSize: "12px", fontFamily: "inherit" },
      x: { label: `${unit} →`, labelArrow: "none", tickSize: 3, ticks: Math.max(3, Math.floor(width / 80)), tickFormat: strength, inset: 8 },
      y: { label: measure.axis, insetTop: 14, labelArrow: "none", grid: true, tickSize: 0, zero: measure.zero, nice: true, ticks: 6, tickFormat: measure.format === M.fmt.percent ? M.ticks(" %", 100) : M.ticks() },
      marks: [
        neutral === null ? null : Plot.ruleX([neutral], { stroke: "currentColor", strokeDasharray: "4 3", strokeOpacity: 0.6 }),
        ...lines.map((l) => Plot.line(l.rows, { x: "strength", y: "value", stroke: l.color, strokeWidth: 1.8 })),
        ...lines.map((l) => Plot.dot(l.rows, { x: "strength", y: "value", fill: l.color, r: 3.2 })),
        Plot.tip(rows, Plot.pointer({ x: "strength", y: "value", title: (r) => `${strength(r.strength)} ${unit}\n${r.name} ${measure.format(r.value)}`, maxRadius: 40 })),
      ].filter(Boolean),
    }), several ? M.legend(lines.map((l) => ({ color: l.color, label: l.name }))) : null);
    M.asTable("sweep", [
      { key: "strength", label: unit, format: strength }, ...lines.map((l, i) => ({ key: `v${i}`, label: l.name, format: measure.format })),
    ], () => points.map((p, n) => ({ strength: p.strength, ...Object.fromEntries(lines.map((l, i) => [`v${i}`, l.rows[n] ? l.rows[n].value : null])) })));
  }, () => M.id("controls-sweep").append(M.choice("Show", "follow", MEASURES.map(({ value, label }) => ({ value, label })))));

  M.figure("strengths", [], () => {
    M.title("strengths", "What it writes at each strength", swept.before ? "the first token that differs from the unedited text is marked" : "no text was generated");
    const text = (p) => (!p.text ? "–" : p.first_difference === null ? M.h("span", { class: "w same" }, "as unedited") : p.text.pieces.map((piece, i) =>
      M.h("span", { class: i < p.first_difference ? "w same" : i === p.first_difference ? "w first" : "w" }, i === p.first_difference ? M.marked(piece) : piece || "∅")));
    const texts = { key: "text", label: "text", text: true, render: text };
    const narrow = M.width("strengths") < 520; // the texts are what matters, so they must not be cut off
    M.fill(M.id("plot-strengths"), M.table([
      { key: "strength", label: unit, format: strength }, ...(narrow ? [texts] : []), { key: "chosen", label: "chosen", format: M.fmt.text }, { key: "kl", label: "KL", format: M.fmt.small },
      { key: "next", label: "next token", name: true }, ...(narrow ? [] : [texts]),
    ], points.map((p) => ({ ...p, chosen: `${p.chosen}/${p.places}`, next: `${M.shown(p.token)} ${M.fmt.prob(p.prob)}` })), { label: "Texts by strength", fixed: true }));
  });
})();
