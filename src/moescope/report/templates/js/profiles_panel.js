"use strict";
// The chosen expert: head, summary and parts; the address names it, so that a link finds it again.
M.start(function () {
  const about = M.data.about;
  const single = M.size === 1;

  M.section("subtitle", ["never"], () => {
    const measured = M.data.measured;
    const text = measured ? ` · measured with the model on ${M.fmt.count(d3.sum(measured.text.tokens))} of them` : "";
    M.id("subtitle").textContent = `${single ? `${M.profile(0).name} of ` : ""}${M.fmt.count(d3.sum(M.layers, (l) => l.experts))} experts in ${M.layers.length} MoE layer${M.layers.length > 1 ? "s" : ""} · ${M.fmt.count(about.tokens)} tokens of ${M.fmt.count(about.documents)} documents from ${about.corpus.path || "the corpus"}${text}`;
  });

  // Choose an expert. quiet: step by step, so that going back does not walk all the way.
  M.choose = function (index, quiet) {
    const hash = `#${M.profile(index).name}`;
    if (location.hash !== hash) {
      if (quiet) history.replaceState(null, "", hash);
      else location.hash = hash;
    }
    if (index !== M.state.expert) M.set({ expert: index });
  };
  const named = () => M.indexOf.get(decodeURIComponent(location.hash.slice(1)).toUpperCase());
  window.addEventListener("hashchange", () => {
    const index = named();
    if (index === undefined) return;
    if (index !== M.state.expert) M.set({ expert: index });
    toProfile();
  });
  function toProfile() {
    const panel = M.id("plot-panel");
    const top = panel.getBoundingClientRect().top;
    if (top < 0 || top > window.innerHeight * 0.6) panel.scrollIntoView({ block: "start", behavior: "instant" });
  }
  if (!single) M.drawn.push(() => named() !== undefined && toProfile());

  // Once the large map is out of sight a small one stays above the profile, and the list below it.
  function keepMap() {
    const above = M.id("above");
    const told = document.documentElement;
    const update = () => {
      const gone = M.id("plot-map").getBoundingClientRect().bottom < above.offsetHeight && M.id("experts").getBoundingClientRect().bottom > above.offsetHeight;
      above.classList.toggle("shown", gone);
      above.inert = !gone;
    };
    const measure = () => told.style.setProperty("--above", `${above.offsetHeight}px`);
    window.addEventListener("scroll", update, { passive: true });
    new ResizeObserver(measure).observe(above);
    measure();
    update();
  }
  if (!single) M.drawn.unshift(keepMap);

  function step(by) {
    const found = M.sorted();
    const all = found.length ? found : d3.range(M.size);
    const now = all.indexOf(M.state.expert);
    M.choose(all[(now < 0 ? 0 : now + by + all.length) % all.length], true);
  }
  document.addEventListener("keydown", (event) => {
    if (single || event.altKey || event.ctrlKey || event.metaKey || event.defaultPrevented) return;
    if (event.target.closest("input, select, textarea, .table-wrap")) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    step(by);
  });

  function sureLine(p) {
    const lines = [`${M.fmt.count(p.count)} assignments in ${M.fmt.count(p.documents)} documents of the run stand behind load, tokens and partners.`];
    if (p.sure_domain) lines.unshift(`${p.sure_level}: ${M.fmt.count(p.sure_assignments)} assignments and ${M.fmt.count(p.sure_documents)} documents of ${p.sure_domain} stand behind what is said of domains.`);
    if (!p.absent.contribution) lines.push(`${M.fmt.count(p.contribution_tokens)} assignments in ${M.fmt.count(p.contribution_documents)} documents were measured with the model.`);
    if (!p.absent.tokens_in) lines.push(p.tokens_in_overlap === null ? "The token list could not be compared between halves of the documents." : `Token list: two halves of the documents share ${M.fmt.percent(p.tokens_in_overlap)}.`);
    if (!p.absent.pushes) lines.push(`Promoted tokens: the halves share ${M.fmt.percent(p.pushes_promoted_overlap)} of the top ${M.data.rules.agreed}, rank correlation ${M.fmt.two(p.pushes_agreement)}.`);
    lines.push("Lists show the strongest entries of many, so their true size is likely somewhat smaller.");
    return M.part("How sure this is", null, M.h("ul", { class: "sure-list" }, lines.map((t) => M.h("li", {}, t))));
  }

  // What only the model can say: without it, and with more of it.
  function asks(p) {
    const commands = Object.values(M.data.commands).map((text) => M.command(text.replaceAll(M.data.expert_word, p.name)));
    return commands.length ? M.part("Take it away, or steer by it", "Whether the model needs it, only removing it can show. Run these where the run's folder lies.", commands) : null;
  }

  function draw() {
    const p = M.profile(M.state.expert);
    const summary = p.summary.startsWith(`${p.name}: `) ? p.summary.slice(p.name.length + 2) : p.summary.slice(p.name.length + 1);
    const held = summary.replace(/‘[^’]*’/g, (quoted) => quoted.replace(/ /g, "\u00a0")); // a token stays in one piece
    const steps = () => M.h("span", { class: "segments" },
      M.h("button", { type: "button", "aria-label": "previous expert", onclick: () => step(-1) }, "←"),
      M.h("button", { type: "button", "aria-label": "next expert", onclick: () => step(1) }, "→"));
    const buttons = single ? null : steps();
    if (!single) M.fill(M.id("above-name"), M.h("b", {}, p.name), M.h("span", { class: "soft" }, p.role_words), steps(), M.h("a", { href: "#experts" }, "map and list"));
    const [, layer, expert] = p.name.match(/L(\d+)E(\d+)/);
    M.fill(M.id("plot-panel"),
      M.h("header", { class: "profile-head" },
        M.h("h3", { id: "panel-name" }, p.name, M.h("span", { class: "where" }, `layer ${layer}, expert ${expert}`)),
        p.flags.map((f) => M.h("span", { class: "tag flag" }, f)),
        M.h("span", { class: `tag ${p.sure_level}` }, p.sure_level === "none" ? "too few tokens" : `sure: ${p.sure_level}`), buttons),
      M.h("p", { class: "finding" }, held.charAt(0).toUpperCase() + held.slice(1)),
      M.parts.facts(p), M.parts.domains(p), M.parts.tokens(p), M.parts.contexts(p), M.parts.pushes(p), M.parts.partners(p),
      M.h("div", { class: "columns" }, M.h("div", {}, M.parts.similar(p)), M.h("div", {}, M.parts.weights(p))),
      M.parts.speech(p), sureLine(p), asks(p));
    M.id("plot-panel").setAttribute("aria-labelledby", "panel-name");
  }
  M.section("panel", ["expert"], draw, () => {
    const index = named();
    if (index !== undefined) M.state.expert = index;
    else if (!single) M.state.expert = first();
  });

  // Without a name in the address: the expert that a domain marks most clearly.
  function first() {
    const clear = d3.range(M.size).filter((i) => M.profile(i).role_kind === "domain" && M.profile(i).sure_level === "high");
    const best = d3.greatest(clear, (i) => M.profile(i).top_lift);
    return best === undefined ? 0 : best;
  }
});
