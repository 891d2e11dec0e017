"use strict";
// Profiles by short keys, as the page's data holds them: names for the places in a row, colours for
// domains, and what each expert is worth in a chosen quantity.
(function () {
  const data = M.data;
  const LOAD = ["count", "tokens", "documents", "load", "even", "rate", "rateLow", "rateHigh", "chance", "mass", "massLow", "massHigh", "first"];
  const DOMAIN = ["domain", "rate", "low", "high", "others", "lift", "liftLow", "liftHigh", "q", "ofExpert", "ofText", "mass", "massLow", "massHigh", "byToken", "contribution", "documents"];
  const TOKEN = ["id", "count", "share", "ofToken", "lift", "documents"];
  const VOCABULARY = ["value", "null", "excess", "halfA", "halfB", "top", "half", "text"];
  const PARTNER = ["expert", "count", "given", "lift", "low", "high"];
  const SPEECH = ["tag", "share", "low", "high", "text"];
  const CONTRIBUTION = ["tokens", "documents", "mean", "low", "high", "share", "loadShare", "weight", "activation", "activationShare", "peak", "countedPeak", "peakRatio", "superRule"];
  const CONTEXT = ["domain", "doc", "pos", "contribution", "before", "token", "after"];
  const PUSH = ["id", "own", "others", "beyond", "a", "b"];
  const SIMILAR = ["expert", "cosine", "a", "b"];
  const WEIGHT = ["tensor", "norm", "mean", "z"];

  const named = (names, row) => Object.fromEntries(names.map((n, i) => [n, row[i]]));
  const all = (names, rows) => rows.map((r) => named(names, r));
  // A part is a text when it is absent: then the text is the reason.
  M.missing = (part) => typeof part === "string";
  const listed = (names, part) => (M.missing(part) ? part : { ...part, rows: all(names, part.rows) });

  const unpacked = new Map();
  M.profile = function (index) {
    if (unpacked.has(index)) return unpacked.get(index);
    const p = data.profiles[index];
    const made = {
      name: p.x, summary: p.s, role: { kind: p.r[0], words: p.r[1], about: p.r[2] }, flags: p.f,
      sure: { level: p.u[0], assignments: p.u[1], documents: p.u[2] },
      load: named(LOAD, p.l), domains: listed(DOMAIN, p.d), tokens: listed(TOKEN, p.t),
      vocabulary: M.missing(p.v) ? p.v : named(VOCABULARY, p.v),
      together: listed(PARTNER, p.c), before: listed(PARTNER, p.p), after: listed(PARTNER, p.n), speech: listed(SPEECH, p.o),
      contribution: M.missing(p.a) ? p.a : named(CONTRIBUTION, p.a),
      contexts: M.missing(p.k) ? p.k : all(CONTEXT, p.k),
      pushes: M.missing(p.g) ? p.g : { ...p.g, up: all(PUSH, p.g.up), down: all(PUSH, p.g.down) },
      similar: listed(SIMILAR, p.m), weights: M.missing(p.w) ? p.w : all(WEIGHT, p.w),
    };
    unpacked.set(index, made);
    return made;
  };
  M.size = data.profiles.length;
  M.indexOf = new Map(data.profiles.map((p, i) => [p.x, i]));

  // Eight colours, and eight paler ones for the next domains; after sixteen they come round again.
  M.domainInk = (i) => (i % 16 < 8 ? M.css(`d${i % 8}`) : d3.interpolateRgb(M.css(`d${i % 8}`), M.css("panel"))(0.5));

  // Quantities that the map can show. of(profile, layer): a number, or null where it is not known.
  const part = (key, read) => (p) => (M.missing(p[key]) ? null : read(p[key]));
  const ratio = (a, b) => (a === null || !b ? null : a / b);
  const perLayer = new Map();
  function layerMean(layer) {
    if (!perLayer.has(layer)) {
      const [start, size] = [M.offsets[layer], M.layers[layer].experts];
      perLayer.set(layer, d3.mean(d3.range(start, start + size), (i) => part("contribution", (a) => a.mean)(M.profile(i))));
    }
    return perLayer.get(layer);
  }
  const twice = (v) => `${M.fmt.lift(v)}×`;
  M.QUANTITIES = {
    role: { label: "what stands out" },
    load: { label: "load", title: "Load over an even share", of: (p) => ratio(p.load.load, p.load.even), format: twice, log: true },
    lift: { label: "strongest domain", title: "Largest lift of a domain over the others", of: part("domains", (d) => (d.best ? d.best[1] : null)), format: twice, log: true },
    vocabulary: { label: "vocabulary", title: "Vocabulary excess: how far it belongs to few token ids", of: part("vocabulary", (v) => v.excess), format: M.fmt.two, top: 1 },
    contribution: { label: "contribution", title: "Mean contribution over the layer's mean expert", of: (p, layer) => ratio(part("contribution", (a) => a.mean)(p), layerMean(layer)), format: twice, log: true },
    push: { label: "push on logits", title: "How strongly it pushes, beyond the layer's other experts (logits)", of: part("pushes", (g) => g.spread), format: M.fmt.three },
    agreement: { label: "repeatable push", title: "Promoted tokens that two halves of the documents share", of: part("pushes", (g) => g.overlap[0]), format: M.fmt.percent, top: 1 },
    similar: { label: "likeness", title: "Cosine with the most similar expert of the layer", of: part("similar", (m) => m.rows[0].cosine), format: M.fmt.two, top: 1 },
    peak: { label: "peak output", title: "Largest output component over the median expert's", of: part("contribution", (a) => a.peakRatio), format: twice, log: true },
  };
  M.offered = Object.keys(M.QUANTITIES).filter((k) => M.size === 1 || k === "role" || d3.range(M.size).some((i) => M.QUANTITIES[k].of(M.profile(i), M.place(i).layer) !== null));

  // State that is shared: the chosen expert, the colour, and the search.
  Object.assign(M.state, { expert: 0, color: "role", search: "", role: "", domain: "", flag: "", sort: "order" });

  const haystacks = new Map();
  function haystack(index) {
    if (!haystacks.has(index)) {
      const p = M.profile(index);
      const words = [p.name, p.summary, p.role.words];
      if (!M.missing(p.tokens)) words.push(...p.tokens.rows.map((t) => M.tokenText(t.id)));
      if (!M.missing(p.pushes)) words.push(...[...p.pushes.up, ...p.pushes.down].map((t) => M.tokenText(t.id)));
      haystacks.set(index, words.join("\n").toLowerCase());
    }
    return haystacks.get(index);
  }
  M.matches = function (index) {
    const { search, role, domain, flag } = M.state;
    const p = M.profile(index);
    if (role && p.role.kind !== role) return false;
    if (flag && !p.flags.includes(flag) && p.sure.level !== flag) return false;
    if (domain !== "") {
      const i = Number(domain);
      const used = M.missing(p.domains) ? [] : p.domains.rows;
      const stands = used.some((d) => d.domain === i && d.q !== null && d.q < 0.05 && (d.lift === null || d.lift >= 1.5));
      if (!stands) return false;
    }
    const query = search.trim().toLowerCase();
    if (!query) return true;
    if (/^l\d+(e\d+)?$/.test(query)) return query.includes("e") ? p.name.toLowerCase() === query : p.name.toLowerCase().startsWith(`${query}e`);
    return haystack(index).includes(query);
  };
  M.found = () => d3.range(M.size).filter(M.matches);
  M.filtered = () => Boolean(M.state.search.trim() || M.state.role || M.state.flag || M.state.domain !== "");
})();
