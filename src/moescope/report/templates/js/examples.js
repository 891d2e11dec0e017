"use strict";
// Example texts: tokens coloured by first choice, or, where an imported run does not know which of a
// token's experts was first, by one expert; hover, touch or arrow keys show all the routing.
(function () {
  const COLORS = 8;
  M.state.exampleDomain = null;
  const ordered = !M.data.absent.order;
  M.state.exampleNumbers = ordered;
  M.state.exampleExpert = -1;
  const unpacked = {};

  function bytes(text) {
    return Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  }
  // Routing of all example tokens of a phase, read once.
  function routing() {
    const phase = M.state.phase;
    if (phase in unpacked) return unpacked[phase];
    const made = M.view().examples;
    if (!made) return (unpacked[phase] = null);
    const raw = bytes(made.experts);
    const experts = made.bytes === 2 ? new Uint16Array(raw.buffer) : raw;
    const starts = made.top_k.reduce((all, k) => (all.push(all[all.length - 1] + k), all), [0]);
    const width = starts[starts.length - 1];
    const [weights, entropy] = made.weights ? [bytes(made.weights), bytes(made.entropy)] : [null, null];
    const at = (token, layer) => d3.range(made.top_k[layer]).map((j) => {
      const index = token * width + starts[layer] + j;
      return { expert: experts[index], weight: weights ? (weights[index] / 255) * made.weight_max : null };
    });
    let offset = 0;
    const spans = made.spans.map((s) => ({ ...s, offset: (offset += s.ids.length) - s.ids.length }));
    return (unpacked[phase] = {
      spans, at, first: (token, layer) => experts[token * width + starts[layer]],
      entropy: (token, layer) => (entropy ? entropy[token * made.top_k.length + layer] / 255 : null),
    });
  }

  function describe(made, token, id, position) {
    const layer = M.state.layer;
    const chosen = made.at(token, layer);
    const most = d3.max(chosen, (c) => c.weight) || 1;
    const entropy = made.entropy(token, layer);
    const named = chosen.map((c) => `E${c.expert}`).join(" ");
    return [
      M.h("div", {}, M.h("b", {}, `“${M.tokenShown(M.tokenText(id))}”`), ` position ${position}`),
      M.h("div", {}, `layer ${M.layers[layer].layer}`, entropy === null ? null : ` · router entropy ${M.fmt.two(entropy)}`),
      chosen[0].weight === null
        ? M.h("div", {}, ordered ? `experts, by weight: ${named}` : `experts, in no order: ${named}`)
        : chosen.map((c) => M.h("div", { class: "row" }, M.h("span", { style: { width: "3.2rem" } }, `E${c.expert}`), M.h("i", { style: { width: `${(7 * c.weight) / most}rem` } }), M.fmt.three(c.weight))),
      ordered ? M.h("div", { class: "strip" }, "first choice by layer: ", M.layers.map((l, i) => `${M.name(i, made.first(token, i))}`).join(" ")) : null,
    ];
  }

  // One passage: a single tab stop, arrow keys move inside it.
  function passage(made, span, colors) {
    const tokens = span.ids.map((id, i) => {
      const token = span.offset + i;
      const experts = made.at(token, M.state.layer).map((c) => c.expert);
      const served = ordered ? experts[0] : experts.find((e) => colors.has(e));
      const spoken = ordered ? `expert ${experts[0]}` : `experts ${experts.join(", ")}`;
      const element = M.h("span", {
        class: "tok", tabindex: i === 0 ? 0 : -1, style: {},
        "aria-label": `${M.tokenText(id).trim() || "space"}, ${spoken}`,
      }, M.tokenText(id).replace(/\n/g, "⏎\n"), M.state.exampleNumbers ? M.h("sub", { "aria-hidden": "true" }, experts[0]) : null);
      element.style.setProperty("--tok", colors.get(served) || "var(--faint)");
      const show = (x, y) => M.tip.show(x, y, describe(made, token, id, span.start + i));
      element.addEventListener("pointerenter", (event) => show(event.clientX, event.clientY));
      element.addEventListener("pointerleave", () => M.tip.hide());
      element.addEventListener("focus", () => {
        const box = element.getBoundingClientRect();
        show(box.left, box.bottom - 12);
      });
      element.addEventListener("blur", () => M.tip.hide());
      return element;
    });
    const text = M.h("p", { role: "group", "aria-label": "tokens; arrow keys move" }, tokens);
    text.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
      const now = tokens.indexOf(document.activeElement);
      if (!step || now < 0) return;
      event.preventDefault();
      const next = tokens[Math.max(0, Math.min(tokens.length - 1, now + step))];
      tokens[now].tabIndex = -1;
      next.tabIndex = 0;
      next.focus({ preventScroll: false });
    });
    return M.h("div", { class: "passage" }, M.h("h4", {}, `${span.domain} · ${span.doc} · from position ${span.start}`), text);
  }

  // Colours of experts, and the legend that says so.
  function colorsOf(made) {
    const layer = M.layers[M.state.layer].layer;
    const every = made.spans.flatMap((s) => s.ids.flatMap((_, i) => made.at(s.offset + i, M.state.layer).slice(0, ordered ? 1 : undefined).map((c) => c.expert)));
    const counts = d3.sort([...d3.rollup(every, (v) => v.length, (e) => e)], (d) => -d[1], (d) => d[0]);
    const total = d3.sum(made.spans, (s) => s.ids.length);
    const shown = ordered ? counts.slice(0, COLORS) : counts.filter((d, i) => (M.state.exampleExpert < 0 ? i === 0 : d[0] === M.state.exampleExpert));
    M.fill(M.id("legend-examples"), `${ordered ? "first choices" : "tokens served"} in layer ${layer}: `, shown.length ? null : `none by E${M.state.exampleExpert}`,
      shown.map((d, i) => M.h("span", {}, M.h("span", { class: "swatch", style: { background: `var(--d${i})` } }), `${ordered ? "" : "by "}E${d[0]} (${M.fmt.percent(d[1] / total)})`)),
      ordered && counts.length > COLORS ? M.h("span", {}, M.h("span", { class: "swatch", style: { background: "var(--faint)" } }), `${counts.length - COLORS} others`) : null);
    return new Map(shown.map((d, i) => [d[0], `var(--d${i})`]));
  }

  function expertControl() {
    const expert = M.h("select", { "aria-label": "Expert", onchange: () => M.set({ exampleExpert: expert.selectedIndex - 1 }) });
    const update = () => {
      M.fill(expert, M.h("option", {}, "the busiest"), d3.range(M.layers[M.state.layer].experts).map((e) => M.h("option", {}, `E${e}`)));
      if (M.state.exampleExpert >= M.layers[M.state.layer].experts) M.state.exampleExpert = -1;
      expert.selectedIndex = M.state.exampleExpert + 1;
    };
    M.watch("layer", update);
    update();
    return M.h("div", { class: "control" }, M.h("span", { class: "name" }, "Tokens of"), expert);
  }

  M.section("examples", ["phase", "layer", "exampleDomain", "exampleNumbers", "exampleExpert"], () => {
    if (M.missing("examples", "tokens")) return;
    const made = routing();
    const host = M.id("plot-examples");
    M.fill(M.id("legend-examples"));
    if (!made || !made.spans.length) {
      M.fill(host, M.absent("Absent: no single tokens were kept in this part of the run. Trace with --keep sample to see example texts."));
      return;
    }
    const present = [...new Set(made.spans.map((s) => s.domain))];
    const domain = present.includes(M.state.exampleDomain) ? M.state.exampleDomain : present[0];
    const spans = made.spans.filter((s) => s.domain === domain);
    const colors = colorsOf(made);
    M.fill(host, spans.map((s) => passage(made, s, colors)));
  }, () => {
    const made = M.data.views[M.data.phases[0]].examples;
    if (!made) return;
    const present = [...new Set(made.spans.map((s) => s.domain))];
    M.state.exampleDomain = present[0];
    M.id("controls-examples").append(...[
      M.layerControl(),
      present.length > 1 ? M.choice("Domain", "exampleDomain", present.map((n) => ({ value: n, label: n }))) : null,
      ordered ? M.toggle("expert numbers", "exampleNumbers") : expertControl(),
    ].filter(Boolean));
  });
})();
