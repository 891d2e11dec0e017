"use strict";
// The prompt, the routing of the edited layers, and the next token before and after.
(function () {
  M.fmt.signed = M.known((v) => `${v > 0 ? "+" : ""}${v !== 0 && Math.abs(v) < 0.0005 ? v.toExponential(1) : v.toFixed(3)}`);
  M.fmt.small = M.known((v) => (v === 0 ? "0" : d3.format(".3~g")(v)));
  M.fmt.prob = M.known((v) => `${v >= 0.00095 || v === 0 ? (100 * v).toFixed(1) : d3.format(".2~g")(100 * v)} %`);
  // A token with its blanks and line ends to be seen.
  M.shown = (text) => text.replace(/ /g, "·").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍") || "∅";
  // The marked token of a text: a blank one would be marked and not seen.
  M.marked = (text) => (text.trim() ? text : M.shown(text) + (text.includes("\n") ? text : ""));
  M.before = () => M.css("d0");
  M.after = () => M.css("d1");
  M.twoKeys = (...more) => M.legend([{ color: M.before(), label: "before" }, { color: M.after(), label: "after" }, ...more]);

  // Dumbbells: a row for each thing, a dot for each side. spec: rows [{name, before, after, bold, title}], label, width, x
  M.dumbbells = function (spec) {
    const longest = d3.max(spec.rows, (r) => r.name.length) || 4;
    const left = Math.min(Math.max(70, 7.2 * longest + 16), Math.max(90, spec.width * 0.34));
    const short = (r) => M.shorten(r.name, Math.floor((left - 14) / 6.9));
    const order = spec.rows.map((r) => r.key);
    const both = spec.rows.flatMap((r) => [
      { ...r, value: r.before, side: "before" }, { ...r, value: r.after, side: "after" },
    ]).filter((d) => d.value !== null);
    const names = new Map(spec.rows.map((r) => [r.key, r]));
    return Plot.plot({
      width: spec.width, height: 24 * spec.rows.length + 58, marginLeft: left, marginRight: 16, marginTop: 10, marginBottom: 40,
      ariaLabel: spec.label, style: { background: "transparent", fontSize: "12px", fontFamily: "inherit" },
      x: { grid: true, tickSize: 0, labelArrow: "none", ...spec.x },
      y: { domain: order, axis: null, padding: 0.5 },
      marks: [
        Plot.ruleY(spec.rows, { y: "key", stroke: "currentColor", strokeOpacity: 0.1 }),
        Plot.text(order, { y: (k) => k, text: (k) => short(names.get(k)), frameAnchor: "left", textAnchor: "end", dx: -8, fontWeight: (k) => (names.get(k).bold ? 700 : 400) }),
        Plot.link(spec.rows.filter((r) => r.before !== null && r.after !== null), { x1: "before", x2: "after", y1: "key", y2: "key", stroke: "currentColor", strokeOpacity: 0.45, strokeWidth: 1.6 }),
        Plot.dot(both, { x: "value", y: "key", r: 5, symbol: (d) => (d.side === "before" ? "circle" : "diamond"), fill: (d) => (d.side === "before" ? M.before() : M.after()) }),
        Plot.tip(both, Plot.pointer({ x: "value", y: "key", title: "title", maxRadius: 40 })),
      ],
    });
  };

  M.section("prompt", [], () => {
    const targets = new Set(M.data.targets || []);
    M.fill(M.id("prompt"), M.data.prompt.pieces.flatMap((piece, i) => [
      M.h("span", { class: targets.has(i) ? "t hit" : "t", title: `token ${i}, id ${M.data.prompt.ids[i]}` }, M.shown(piece), M.h("sub", {}, String(i))), " ",
    ]));
  });

  // Routing: one choice of token and layer at a time.
  const choices = M.data.choices;
  const edited = new Set(M.data.uses.map((u) => u.expert));
  M.state.choice = 0;
  M.figure("routing", ["choice"], () => {
    if (!choices.length) return M.fill(M.id("plot-routing"), M.absent("No layer was read."));
    const at = choices[M.state.choice];
    const sides = [new Map(at.before), new Map(at.after)];
    const ids = d3.sort(new Set([...sides[0].keys(), ...sides[1].keys()]), (e) => -Math.max(sides[0].get(e) || 0, sides[1].get(e) || 0));
    const value = (side, e) => (sides[side].has(e) ? sides[side].get(e) : null);
    const rows = ids.map((e) => {
      const name = `L${at.layer_idx}E${e}`;
      const [before, after] = [value(0, e), value(1, e)];
      const said = (v) => (v === null ? "not chosen" : M.fmt.three(v));
      const how = before === null ? " · comes in" : after === null ? " · goes out" : "";
      return { key: name, name: `${name}${edited.has(name) ? " ◂ edited" : ""}`, expert: name, before, after, bold: edited.has(name), how: how.slice(3), own: edited.has(name), title: `${name}${how}\nbefore: ${said(before)}\nafter: ${said(after)}` };
    });
    const moved = rows.filter((r) => r.how).length;
    M.title("routing", `Layer ${at.layer_idx} at token ${at.position}, ${M.shown(M.data.prompt.pieces[at.position])}: ${moved ? `${rows.filter((r) => r.how === "comes in").map((r) => r.expert).join(", ")} in, ${rows.filter((r) => r.how === "goes out").map((r) => r.expert).join(", ")} out` : "the same experts"}`, "weight of each chosen expert");
    M.fill(M.id("plot-routing"), M.dumbbells({ rows, width: M.width("routing"), label: "Weights of the chosen experts before and after", x: { label: "weight →", zero: true } }), M.twoKeys(), M.h("ul", { class: "methods" }, M.data.uses.slice(0, 12).map((u) => M.h("li", {}, M.expert(u.expert), useText(u).slice(u.expert.length)))));
    M.asTable("routing", [
      { ...M.expertColumn("expert"), render: (r) => [M.expert(r.expert), r.own ? " ◂ edited" : ""] }, { key: "before", label: "weight before", format: M.fmt.three }, { key: "after", label: "weight after", format: M.fmt.three }, { key: "how", label: "", text: true },
    ], () => rows);
    return undefined;
  }, () => {
    if (choices.length > 1) M.id("controls-routing").append(M.choice("Token and layer", "choice", choices.map((c, i) => ({ value: i, label: `${c.position} ${M.shown(M.data.prompt.pieces[c.position])}, layer ${c.layer_idx}` })), 4));
  });
  function useText(u) {
    const of = (n, all) => `${n} of ${M.fmt.count(all)}`;
    const written = u.written_before ? `; in the generated text at ${of(...u.written_before)} before, ${of(...u.written_after)} after` : "";
    return `${u.expert}: chosen at ${of(u.chosen_before, u.positions)} prompt token${u.positions > 1 ? "s" : ""} where the edit holds before, ${of(u.chosen_after, u.positions)} after${written}.`;
  }

  M.state.scale = "linear";
  const shiftRow = (text, s, more) => ({ ...s, text, ranks: s.rank_before === s.rank_after ? String(s.rank_before) : `${s.rank_before} → ${s.rank_after}`, ...more });
  const COLUMNS = [
    { key: "prob_before", label: "before", format: (v) => M.fmt.prob(v) }, { key: "prob_after", label: "after", format: (v) => M.fmt.prob(v) },
    { key: "log_prob_change", label: "Δ log p", format: (v) => M.fmt.signed(v) }, { key: "logit_change", label: "Δ logit", format: (v) => M.fmt.signed(v) },
    { key: "ranks", label: "rank", text: true },
  ];
  M.figure("next", ["scale"], () => {
    const rows = M.data.tokens.map((t, i) => {
      const s = t.shift;
      return { ...shiftRow(M.shown(t.text), s), key: i, name: M.shown(t.text), before: s.prob_before * 100, after: s.prob_after * 100, title: `${M.shown(t.text)}\n${M.fmt.prob(s.prob_before)} → ${M.fmt.prob(s.prob_after)}\nΔ log p ${M.fmt.signed(s.log_prob_change)}, Δ logit ${M.fmt.signed(s.logit_change)}` };
    });
    const log = M.state.scale === "log" && rows.every((r) => r.before > 0 && r.after > 0);
    M.title("next", "Probability of the next token, before and after", `KL(before‖after) ${M.fmt.small(M.data.kl)} nats · entropy ${M.fmt.two(M.data.entropy_before)} → ${M.fmt.two(M.data.entropy_after)} nats`);
    M.fill(M.id("plot-next"), M.dumbbells({ rows, width: M.width("next"), label: "Probability of the most probable next tokens before and after", x: { type: log ? "log" : "linear", zero: !log, label: `probability, %${log ? " (log scale)" : ""} →`, ticks: log ? 4 : 6, tickFormat: log ? d3.format(".2~g") : M.ticks() } }), M.twoKeys());
    M.asTable("next", [{ key: "text", label: "token", name: true }, ...COLUMNS], () => rows);
  }, () => M.id("controls-next").append(M.choice("Axis", "scale", [{ value: "linear", label: "linear" }, { value: "log", label: "log" }])));

  M.figure("words", [], () => {
    M.title("words", "The words that were asked for, each by its first token", M.data.words.some((w) => w.word.num_tokens > 1) ? "1 of n: the word is n tokens, and only the first is followed" : null);
    M.fill(M.id("plot-words"), M.table([
      { key: "word", label: "word", text: true }, { key: "text", label: "token", name: true }, ...COLUMNS,
    ], M.data.words.map((w) => shiftRow(`${M.shown(w.word.text)}${w.word.num_tokens > 1 ? ` (1 of ${w.word.num_tokens})` : ""}`, w.shift, { word: w.word.main ? w.word.word : `${w.word.word} (other form)`, dim: !w.word.main })), { label: "Words" }));
  });
})();
