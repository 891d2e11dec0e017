"use strict";
// What was learned: training and held-out loss, held-out loss by domain, and where each domain stands.
(function () {
  const held = M.data.domains;
  const nats = "nats per token";
  const meanRows = () => (held ? held.step.map((step, i) => ({ step, value: held.mean[i] })) : []);

  M.keepOne("smoothing", ["light", "strong", "none"]);
  M.figure("loss", ["smoothing"], () => {
    const rows = M.stepRows("loss");
    const half = M.state.smoothing === "none" ? 0 : M.half(rows.length, M.state.smoothing === "strong" ? 25 : 100);
    const smooth = half ? M.smooth(rows, half) : rows.map((r) => ({ ...r, raw: r.value }));
    const blue = M.css("d0");
    const orange = M.css("d1");
    const mean = meanRows();
    const base = held ? held.last.unigram : null;
    M.title("loss", "Training loss and mean held-out loss", M.sub(`${nats}, lower is better`, base === null ? null : `the unigram model: ${M.fmt.three(base)}`, rows.length ? M.pointsAre() : null));
    const kept = M.data.checkpoints.filter((s) => s !== null && s >= M.stepDomain()[0] && s <= M.stepDomain()[1]).map((step) => ({ step }));
    const plot = M.stepChart({
      width: M.width("loss"), height: 340, label: "Training loss and mean held-out loss by step", unit: nats,
      lines: [...(half ? [{ rows, color: blue, width: 1, opacity: 0.28 }] : []), { rows: smooth, color: blue }, { rows: mean, color: orange, width: 1.6 }],
      dots: [{ rows: mean, color: orange, r: mean.length > 120 ? 1.5 : 3.2 }, { rows: rows.length < 3 ? rows : [], color: blue }],
      refs: [{ value: base, color: orange, far: true }],
      marks: [Plot.dot(kept, { x: "step", frameAnchor: "bottom", symbol: "triangle", fill: "currentColor", r: 4, dy: -5 })],
      tips: [
        ...smooth.map((r) => ({ ...r, title: `${M.when(r)}${r.tokens ? ` · ${M.fmt.any(r.tokens)} tokens` : ""}\ntraining loss ${M.fmt.three(r.raw)}${half ? `, smoothed ${M.fmt.three(r.value)}` : ""}` })),
        ...mean.map((r) => ({ ...r, title: `step ${M.fmt.count(Math.round(r.step))}\nheld-out loss ${M.fmt.three(r.value)}, mean of the domains` })),
      ],
    });
    M.fill(M.id("plot-loss"), plot, M.keys(
      rows.length ? M.key(blue, half ? `training, mean of ${2 * half + 1} points (pale: every point)` : "training") : null,
      mean.length ? M.key(orange, "held-out, mean of the domains by tokens") : null,
      base !== null && mean.length && (M.state.span === "all") ? M.key(orange, "unigram model", { borderTopStyle: "dashed" }) : null,
      kept.length ? M.h("span", {}, M.h("span", {}, "▲"), "checkpoint that is kept") : null));
    M.asTable("loss", [
      { key: "when", label: "steps", name: true, format: M.fmt.text }, { key: "tokens", label: "tokens", format: (v) => M.fmt.count(v === null ? null : Math.round(v)) },
      { key: "value", label: "training loss", format: M.fmt.three },
    ], () => rows.map((r) => ({ ...r, when: M.when(r) })).reverse());
  }, () => M.id("controls-loss").append(...M.axisControls(),
    M.choice("Smoothing", "smoothing", ["none", "light", "strong"].map((v) => ({ value: v, label: v })))));

  if (!held) return;
  const names = held.names;
  const MOST = 16;
  const dashes = [null, "6 3", "2 2"];
  const dash = (i) => dashes[Math.floor(i / 8) % dashes.length];
  const some = (v) => Array.isArray(v) && v.some((n) => names.includes(n));
  M.keep("shown", names.slice(0, MOST), some);
  M.state.shown = names.filter((n) => M.state.shown.includes(n));
  M.keepOne("measure", ["loss", "gain"]);
  const gainOf = (i, loss) => (loss === null || held.unigram[i] === null ? null : held.unigram[i] - loss);
  const known = held.unigram.some((v) => v !== null);

  M.figure("domains", ["shown", "measure"], () => {
    const gain = known && M.state.measure === "gain";
    const width = M.width("domains");
    const shown = names.map((name, i) => ({ name, i })).filter((d) => M.state.shown.includes(d.name));
    const few = shown.length <= 4;
    const rowsOf = (i) => held.step.map((step, t) => {
      const loss = held.loss[t][i];
      return { step, value: gain ? gainOf(i, loss) : loss, title: `${names[i]} · step ${M.fmt.count(Math.round(step))}\nloss ${M.fmt.three(loss)}${held.unigram[i] === null ? "" : `\nunigram model ${M.fmt.three(held.unigram[i])}, gain ${M.fmt.three(gainOf(i, loss))}`}` };
    });
    const lines = shown.map((d) => ({ rows: rowsOf(d.i), color: M.domainColor(d.i), dash: dash(d.i), width: 1.7, name: d.name, i: d.i }));
    const meanOf = held.step.map((step, t) => ({ step, value: gain ? (held.last.unigram === null || held.mean[t] === null ? null : held.last.unigram - held.mean[t]) : held.mean[t] }))
      .map((r) => ({ ...r, title: `mean of all domains · step ${M.fmt.count(Math.round(r.step))}\n${gain ? "gain" : "loss"} ${M.fmt.three(r.value)}` }));
    const ink = M.css("ink");
    const all = names.length > 1 ? [{ rows: meanOf, color: ink, width: 2.6, name: "mean" }] : [];
    const lastOf = (rows) => (rows.findLast((r) => r.value !== null) || { value: null }).value;
    const base = shown.filter((d) => held.unigram[d.i] !== null).map((d) => ({ value: held.unigram[d.i], color: M.domainColor(d.i), dash: "2 3", far: true }));
    M.title("domains", gain ? "Gain over the unigram model on held-out text, by domain" : "Held-out loss by domain",
      M.sub(gain ? "nats per token below the unigram model's loss, higher is better · nothing learned but frequencies: 0" : `${nats}, lower is better`,
        held.each > 1 ? `each point is a mean over ${held.each} evaluations` : null));
    const plot = M.stepChart({
      width, height: 400, label: `Held-out ${gain ? "gain" : "loss"} by domain and step`, unit: gain ? "nats gained per token" : nats, room: width < 520 ? 92 : 128,
      lines: [...lines, ...all],
      dots: held.step.length < 3 ? [...lines, ...all].map((l) => ({ rows: l.rows, color: l.color })) : [],
      refs: gain ? [{ value: 0, far: true }] : few ? base : [],
      ends: gain || few ? [] : base,
      labels: [...lines, ...all].map((l) => ({ value: lastOf(l.rows), text: l.name, color: l.color, always: l.name === "mean" && !("i" in l) })),
      tips: [...lines, ...all].flatMap((l) => l.rows),
    });
    M.fill(M.id("plot-domains"), plot, M.keys(
      all.length ? M.key(ink, "mean of all domains, by tokens") : null,
      known && !gain && M.state.span === "all" ? (few ? M.key("currentColor", "unigram model, on the domain's text", { borderTopStyle: "dotted" }) : M.key("currentColor", "short marks at the right edge: unigram model, on the domain's text", { width: ".8rem" })) : null));
    M.asTable("domains", [
      { key: "step", label: "step", format: (v) => M.fmt.count(Math.round(v)) }, { key: "domain", label: "domain", text: true, format: M.fmt.text },
      { key: "loss", label: "loss", format: M.fmt.three }, { key: "gain", label: "gain", format: M.fmt.three },
    ], () => held.step.flatMap((step, t) => shown.map((d) => ({ step, domain: d.name, loss: held.loss[t][d.i], gain: gainOf(d.i, held.loss[t][d.i]) }))).reverse());
  }, () => {
    const host = M.id("controls-domains");
    if (known) host.append(M.choice("Show", "measure", [{ value: "loss", label: "loss" }, { value: "gain", label: "gain over unigram" }]));
    host.append(...M.axisControls());
    const chips = M.domainChips("shown");
    if (chips) host.append(chips, M.h("button", { type: "button", onclick: () => M.set({ shown: [...names] }) }, "all domains"));
  });

  M.figure("final", [], () => {
    const last = held.last;
    const rows = names.map((domain, i) => ({ domain, tokens: last.tokens ? last.tokens[i] : null, loss: last.loss[i], unigram: held.unigram[i], gain: gainOf(i, last.loss[i]) }));
    const most = d3.max(rows, (r) => Math.abs(r.gain)) || 1;
    const total = names.length > 1 ? [{ domain: "all, by tokens", tokens: last.tokens ? d3.sum(last.tokens) : null, loss: last.mean, unigram: last.unigram, gain: last.unigram === null ? null : last.unigram - last.mean, dim: true }] : [];
    M.title("final", `Every domain at step ${M.fmt.count(last.step)}: loss, the unigram model's loss, and the gain`, "nats per token · gain 0: nothing learned but frequencies");
    M.fill(M.id("plot-final"), M.table([
      { key: "domain", label: "domain", text: true, format: M.fmt.text }, { key: "tokens", label: "tokens", format: M.fmt.count },
      { key: "loss", label: "loss", format: M.fmt.three }, { key: "unigram", label: "unigram", format: M.fmt.three },
      { key: "gain", label: "gain", text: true, render: (r) => (r.gain === null ? "–" : meter(r.gain / most, M.fmt.three(r.gain))) },
    ], [...total, ...d3.sort(rows, (r) => (r.gain === null ? Infinity : -r.gain))], { label: "Held-out loss by domain" }));
    M.id("table-final").hidden = true; // it is a table already
  });
  const meter = (part, text) => M.h("span", { class: "meter" }, M.h("span", { class: "track" },
    M.h("i", { style: { width: `${Math.max(0, Math.min(1, Math.abs(part))) * 100}%`, background: part < 0 ? "var(--bad)" : "var(--d0)" } })), text);
})();
