"use strict";
// Profiles as rows of the page's tables: the figures of an expert by column name, and its lists.
M.start(function () {
  const tables = M.data.tables;
  const columns = Object.fromEntries(Object.entries(tables).map(([name, t]) => [name, Object.keys(t).filter((c) => c !== "starts")]));
  const row = (name, at) => Object.fromEntries(columns[name].map((c) => [c, tables[name][c][at]]));
  const rows = (name, expert) => d3.range(tables[name].starts[expert], tables[name].starts[expert + 1]).map((at) => row(name, at));

  const made = new Map();
  M.profile = function (index) {
    if (!made.has(index)) {
      const partners = d3.group(rows("partners", index), (r) => r.where);
      const pushes = d3.group(rows("pushes", index), (r) => r.side);
      made.set(index, {
        ...row("experts", index), absent: Object.fromEntries(rows("absent", index).map((r) => [r.part, r.reason])),
        lists: {
          domains: rows("domains", index), tokens: rows("tokens", index), contexts: rows("contexts", index), speech: rows("speech", index),
          similar: rows("similar", index), weights: rows("weights", index),
          ...Object.fromEntries(["previous", "coactivated", "following"].map((where) => [where, partners.get(where) || []])),
          ...Object.fromEntries(["promoted", "suppressed"].map((side) => [side, pushes.get(side) || []])),
        },
      });
    }
    return made.get(index);
  };
  M.size = tables.experts.name.length;
  M.indexOf = new Map(tables.experts.name.map((name, i) => [name, i]));
  M.domainIndex = new Map(M.data.domains.map((name, i) => [name, i]));
  M.standsOut = (d) => d.q !== null && d.q < M.data.level;

  // Quantities that the map can show. of(profile, layer): a number, or null where it is not known.
  const ratio = (a, b) => (a === null || !b ? null : a / b);
  const layerMean = d3.range(M.layers.length).map((layer) => {
    const start = M.offsets[layer];
    return d3.mean(tables.experts.contribution_mean.slice(start, start + M.layers[layer].experts));
  });
  const twice = (v) => `${M.fmt.lift(v)}×`;
  M.QUANTITIES = {
    role: { label: "what stands out" },
    load: { label: "load", title: "Load over an even share", of: (p) => ratio(p.load, p.even), format: twice, log: true },
    lift: { label: "strongest domain", title: "Largest lift of a domain over the others", of: (p) => p.top_lift, format: twice, log: true },
    vocabulary: { label: "vocabulary", title: "Vocabulary excess: how far it belongs to few token ids", of: (p) => p.vocabulary_excess, format: M.fmt.two, top: 1 },
    contribution: { label: "contribution", title: "Mean contribution over the layer's mean expert", of: (p, layer) => ratio(p.contribution_mean, layerMean[layer]), format: twice, log: true },
    push: { label: "push on logits", title: "How strongly it pushes, beyond the layer's other experts (logits)", of: (p) => p.pushes_spread, format: M.fmt.three },
    agreement: { label: "repeatable push", title: "Promoted tokens that two halves of the documents share", of: (p) => p.pushes_promoted_overlap, format: M.fmt.percent, top: 1 },
    similar: { label: "likeness", title: "Cosine with the most similar expert of the layer", of: (p) => (p.lists.similar.length ? p.lists.similar[0].cosine : null), format: M.fmt.two, top: 1 },
    peak: { label: "peak output", title: "Largest output component over the median expert's", of: (p) => p.contribution_peak_ratio, format: twice, log: true },
  };
  M.offered = Object.keys(M.QUANTITIES).filter((k) => M.size === 1 || k === "role" || d3.range(M.size).some((i) => M.QUANTITIES[k].of(M.profile(i), M.place(i).layer) !== null));

  // State that is shared: the chosen expert, the colour, and the search.
  Object.assign(M.state, { expert: 0, color: "role", search: "", role: "", domain: "", flag: "", sort: "order" });

  const haystacks = new Map();
  function haystack(index) {
    if (!haystacks.has(index)) {
      const p = M.profile(index);
      const listed = [...p.lists.tokens, ...p.lists.promoted, ...p.lists.suppressed];
      const words = [p.name, p.summary, p.role_words, ...listed.map((t) => t.token)];
      haystacks.set(index, words.join("\n").toLowerCase());
    }
    return haystacks.get(index);
  }
  M.matches = function (index) {
    const { search, role, domain, flag } = M.state;
    const p = M.profile(index);
    if (role && p.role_kind !== role) return false;
    if (flag && !p.flags.includes(flag) && p.sure_level !== flag) return false;
    if (domain && !p.lists.domains.some((d) => d.domain === domain && d.used === "more")) return false;
    const query = search.trim().toLowerCase();
    if (!query) return true;
    if (/^l\d+(e\d+)?$/.test(query)) return query.includes("e") ? p.name.toLowerCase() === query : p.name.toLowerCase().startsWith(`${query}e`);
    return haystack(index).includes(query);
  };
  M.found = () => d3.range(M.size).filter(M.matches);
  M.filtered = () => Boolean(M.state.search.trim() || M.state.role || M.state.flag || M.state.domain);
});
