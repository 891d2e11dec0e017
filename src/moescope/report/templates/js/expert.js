"use strict";
// The expert that the address names (#L3E7): what uses it, its profile, and commands that ask more about it.
(function () {
  const card = M.id("expert-card");
  M.cellLink = (name, shown = name) => M.h("a", { class: "expert", href: `#${name}`, title: name }, shown);

  function named() {
    const [, number, expert] = /^#L(\d+)E(\d+)$/.exec(location.hash) || [];
    const layer = M.layers.findIndex((l) => l.layer === Number(number));
    return layer >= 0 && expert < M.layers[layer].experts ? { layer, expert: Number(expert) } : null;
  }
  function close() {
    history.replaceState(null, "", location.pathname + location.search);
    card.hidden = true;
  }
  function uses(cell, way, words) {
    const names = M.view().domains.filter((_, d) => M.view().special.marks[d][way].includes(cell));
    return names.length ? M.h("p", {}, M.h("b", {}, words), names.join(", ")) : null;
  }
  function show() {
    const found = named();
    card.hidden = !found;
    if (!found) return;
    const name = M.name(found.layer, found.expert);
    const cell = M.cell(found.layer, found.expert);
    const { ablate, steer, profile } = M.data.commands;
    const ask = (words, text) => (text ? [M.h("p", {}, words), M.command(text.replaceAll("LnEm", name))] : null);
    const { top_k: k, experts } = M.layers[found.layer];
    M.fill(card,
      M.h("button", { type: "button", class: "close", "aria-label": "Close", onclick: close }, "×"),
      M.h("h3", {}, name),
      M.h("p", {}, `serves ${M.fmt.percent(M.share("rate", 0, cell))} of all tokens, chance ${M.fmt.percent(k / experts)}`),
      uses(cell, "more", "Used more by: "), uses(cell, "less", "Used less by: "),
      M.profileOf(name) ? M.h("p", {}, M.h("a", { href: M.profileOf(name) }, `Its profile: what ${name} does`)) : ask("What does it do? Profiles of all experts:", profile),
      ask("Does it matter? Take it away:", ablate), ask("What does it change in a text?", steer));
  }
  window.addEventListener("hashchange", show);
  window.addEventListener("keydown", (event) => event.key === "Escape" && !card.hidden && close());
  M.watch("phase", show);
  M.drawn.push(show);
})();
