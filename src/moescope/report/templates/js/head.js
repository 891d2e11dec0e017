"use strict";
// The head of the page: what was run, what is off, the sentences, and the text by domain.
(function () {
  const about = M.data.about;

  function big(count) {
    if (!count) return "–";
    return count >= 1e9 ? `${(count / 1e9).toFixed(1)} B` : `${(count / 1e6).toFixed(1)} M`;
  }
  function span(values) {
    const [low, high] = d3.extent(values);
    return low === high ? String(low) : `${low}–${high}`;
  }

  M.section("subtitle", ["phase"], () => {
    const e = span(M.layers.map((l) => l.experts));
    const k = span(M.layers.map((l) => l.top_k));
    M.id("subtitle").textContent =
      `${M.layers.length} MoE layer${M.layers.length > 1 ? "s" : ""} of ${e} experts, ${k} chosen for each token · ` +
      `${M.fmt.count(about.tokens)} tokens of ${M.fmt.count(about.documents)} documents from ${about.corpus.path || "the corpus"}` +
      (M.data.phases.length > 1 ? ` · showing ${M.state.phase === "decode" ? "generated text (decode)" : "read text (prefill)"}` : "");
  }, () => {
    if (M.data.phases.length > 1) {
      M.id("tools").append(M.choice("Text", "phase", M.data.phases.map((p) => ({ value: p, label: { prefill: "read (prefill)", decode: "generated (decode)" }[p] || p }))));
    }
  });

  // What is written without scripts, of the chosen phase.
  M.section("short", ["phase"], () => document.querySelectorAll("main [data-phase]").forEach((e) => (e.hidden = e.dataset.phase !== M.state.phase)));

  function fact(value, label, level) {
    return M.h("div", { class: level || null }, M.h("b", {}, value), M.h("span", {}, label));
  }
  M.section("facts", ["phase"], () => {
    const c = about.coverage;
    const silent = d3.sum(Object.values(c.experts_never_chosen || {}), (v) => v.length);
    const cells = d3.sum(M.layers, (l) => l.experts);
    const left = Object.entries(about.left_out || {});
    const phases = c.tokens_by_phase || {};
    M.fill(M.id("plot-facts"),
      fact(M.fmt.text(about.model.model_type), "architecture"),
      fact(`${big(about.model.active_params)} of ${big(about.model.total_params)}`, "parameters at work per token, of all"),
      about.source ? fact([about.source.engine, about.source.engine_version].filter(Boolean).join(" "), "reported the experts while serving") : fact(M.fmt.text(about.model.dtype), ["precision of the weights", about.model.processor && `computed on ${about.model.processor}`].filter(Boolean).join("; ")),
      fact(`${M.fmt.text(c.routers_seen)} of ${M.fmt.text(c.routers_expected)}`, "routers seen", c.routers_seen === c.routers_expected ? null : "loud"),
      fact(`${M.fmt.count(silent)} of ${M.fmt.count(cells)}`, "experts never chosen", silent ? "watch" : null),
      fact(M.fmt.count(d3.sum(left, (d) => d[1])), `tokens left out (${left.map((d) => d[0]).join(", ") || "none"})`),
      Object.entries(phases).map(([name, n]) => fact(M.fmt.count(n), { prefill: "tokens read (prefill)", decode: "tokens generated (decode)" }[name] || name)));
  });

  M.section("domains", ["phase"], () => {
    const loss = new Map(M.rows(M.view().loss).map((r) => [r.domain, r]));
    const most = d3.max([...loss.values()].flatMap((r) => [r.loss, r.unigram])) || 1;
    const known = (name, key) => (loss.has(name) ? loss.get(name)[key] : null);
    const rows = about.domains.map((d) => ({ ...d, loss: known(d.name, "loss"), unigram: known(d.name, "unigram") }));
    const paths = M.rows(M.view().paths);
    M.fill(M.id("plot-domains"),
      M.table([
        { key: "name", label: "domain", text: true },
        { key: "documents", label: "documents", format: M.fmt.count },
        { key: "tokens", label: "tokens", format: M.fmt.count },
        { key: "loss", label: "loss, nats per token", text: true, render: (r) => (r.loss === null ? "absent" : M.meter(r.loss / most, M.fmt.two(r.loss))) },
        { key: "unigram", label: "by token frequency", text: true, title: "loss of the best model that knows only how often each token occurs", render: (r) => (r.unigram === null ? "absent" : M.meter(r.unigram / most, M.fmt.two(r.unigram))) },
      ], rows, { label: "Documents, tokens and loss by domain" }),
      loss.size ? null : M.absent("Loss is absent: nothing was predicted in this part of the run."),
      paths.length ? M.h("p", { class: "small" }, `First-choice routes through all layers: ${M.fmt.count(paths[0].distinct)} different ones among ${M.fmt.count(paths[0].tokens)} tokens.`) : null);
  });

  // A bar in a table cell with its number.
  M.meter = (part, text, color) =>
    M.h("span", { class: "meter" }, M.h("span", { class: "track" }, M.h("i", { style: { width: `${Math.max(0, Math.min(1, part)) * 100}%`, background: color || "var(--d0)" } })), text);
})();
