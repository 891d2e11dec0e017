"use strict";
// Experts and words: the measure by layer, the searchable tokens of each expert, the committee.
(function () {
  const KINDS = { input: "token going in", predicted: "token predicted", next: "token that follows" };

  M.section("vocabulary", ["phase"], () => {
    if (M.missing("vocabulary", "tokens")) return;
    const table = M.rows(M.view().vocabulary);
    const kinds = [...new Set(table.map((r) => r.kind))];
    M.title("vocabulary", M.view().titles.vocabulary, table.length ? `only tokens that occur at least ${table[0].min_count} times` : null);
    const rows = table.filter((r) => r.excess !== null).map((r) => ({ layer: r.layer, series: r.kind, value: r.excess, extra: `value ${M.fmt.three(r.value)}, by chance ${M.fmt.three(r.null)}\n${M.fmt.count(r.types)} token ids, ${M.fmt.percent(r.covered)} of the text` }));
    if (!rows.length) {
      M.fill(M.id("plot-vocabulary"), M.absent("No token occurs often enough to measure this."));
      return;
    }
    M.linesByLayer({ name: "vocabulary", rows, series: kinds.map((k, i) => ({ name: k, label: KINDS[k] || k, color: M.domainColor(i), mark: i })),
      refs: [{ rows: M.layers.map((l) => ({ layer: l.layer, value: 0 })), dash: "4 3", label: "chance" }], unit: "excess over chance", format: M.fmt.three, zero: true, label: "Vocabulary specialization by layer" });
    M.asTable("vocabulary", [
      { key: "layer", label: "layer" }, { key: "kind", label: "token", text: true }, { key: "value", label: "value", format: M.fmt.three }, { key: "null", label: "by chance", format: M.fmt.three },
      { key: "excess", label: "excess", format: M.fmt.three }, { key: "types", label: "token ids", format: M.fmt.count }, { key: "covered", label: "of the text", format: M.fmt.percent },
    ], () => table);
  });

  M.state.tokenKind = "input";
  M.state.tokenExpert = -1;
  M.state.tokenSearch = "";

  function tokenRows() {
    const made = M.view().expert_tokens;
    const columns = made.rows && (made.rows[M.state.tokenKind] || made.rows[made.kinds[0]]);
    if (!columns) return [];
    const query = M.state.tokenSearch.trim().toLowerCase();
    const [start, stop] = [M.offsets[M.state.layer], M.offsets[M.state.layer] + M.layers[M.state.layer].experts];
    const out = [];
    columns.cell.forEach((cell, i) => {
      if (query ? !M.tokenText(columns.id[i]).toLowerCase().includes(query) : cell < start || cell >= stop) return;
      if (!query && M.state.tokenExpert >= 0 && cell !== start + M.state.tokenExpert) return;
      const place = M.place(cell);
      const rate = M.share("rate", 0, cell);
      const share = columns.share[i] / 1000;
      out.push({ name: M.name(place.layer, place.expert), token: M.tokenShown(M.tokenText(columns.id[i])), count: columns.count[i], share, rate, times: rate ? share / rate : null });
    });
    return out;
  }

  M.section("tokens", ["phase", "layer", "tokenKind", "tokenExpert", "tokenSearch"], () => {
    if (M.missing("tokens", "tokens")) return;
    const made = M.view().expert_tokens;
    const host = M.id("plot-tokens");
    if (!made.kinds) {
      M.fill(host, M.absent("No token table was kept."));
      return;
    }
    const rows = tokenRows();
    const searching = M.state.tokenSearch.trim();
    M.fill(host, M.h("p", { class: "small", role: "status" }, searching ? `${M.fmt.count(rows.length)} places where “${searching}” is among an expert's top ${made.ranks}, in any layer` : `Layer ${M.layers[M.state.layer].layer}: up to ${made.ranks} tokens of each expert, each seen at least ${made.min_count} times. ␣ is a space.`),
      rows.length ? M.table([
        { key: "name", label: "expert", name: true, render: (r) => M.cellLink(r.name) }, { key: "token", label: "token", mono: true }, { key: "count", label: "times served", format: M.fmt.count },
        { key: "share", label: "of the token's uses", format: M.fmt.percent, title: "share of the token's occurrences that this expert serves" },
        { key: "rate", label: "its overall rate", format: M.fmt.percent, title: "share of all tokens that this expert serves" }, { key: "times", label: "ratio", format: M.fmt.lift, title: "1 is chance" },
      ], rows, { label: "Top tokens of experts" }) : M.absent("No token here passes the floor."));
  }, () => {
    const made = M.data.views[M.data.phases[0]].expert_tokens;
    if (!made.kinds) return;
    const search = M.h("input", { type: "search", placeholder: "a word, in all layers", "aria-label": "Search a token in all layers", oninput: () => M.set({ tokenSearch: search.value }) });
    const expert = M.h("select", { "aria-label": "Expert", onchange: () => M.set({ tokenExpert: expert.selectedIndex - 1 }) });
    const experts = () => {
      M.fill(expert, M.h("option", {}, "all"), d3.range(M.layers[M.state.layer].experts).map((e) => M.h("option", {}, `E${e}`)));
      if (M.state.tokenExpert >= M.layers[M.state.layer].experts) M.state.tokenExpert = -1;
      expert.selectedIndex = M.state.tokenExpert + 1;
    };
    M.watch("layer", experts);
    experts();
    M.id("controls-tokens").append(M.layerControl(), M.h("div", { class: "control" }, M.h("span", { class: "name" }, "Expert"), expert),
      M.choice("Tokens", "tokenKind", made.kinds.map((k) => ({ value: k, label: k }))), M.h("div", { class: "control" }, M.h("span", { class: "name" }, "Search"), search));
  });

  M.state.committee = "all";
  M.section("committee", ["phase", "committee"], () => {
    if (M.missing("committee", "weights")) return;
    const rows = M.view().committee.filter((r) => r.tokens_used === M.state.committee);
    const host = M.id("plot-committee");
    if (!rows.length) {
      M.fill(host, M.absent("No committee figures in this part of the run."));
      return;
    }
    const most = 12;
    M.fill(host, M.h("p", { class: "small" }, `${rows[0].domains} domain${rows[0].domains > 1 ? "s" : ""}; ${d3.sum(rows, (r) => r.members.length)} members in ${rows.length} layers.`),
      M.table([
        { key: "layer", label: "layer" },
        { key: "members", label: "members (mean probability)", text: true, render: (r) => (r.members.length ? r.members.slice(0, most).map((e, i) => `E${e} (${M.fmt.percent(r.eci[i])})`).join(", ") + (r.members.length > most ? ` and ${r.members.length - most} more` : "") : "none") },
        { key: "even", label: "even share", format: M.fmt.percent },
        { key: "jaccard", label: "overlap of domains", format: M.fmt.two }, { key: "jaccard_chance", label: "by chance", format: M.fmt.two },
      ], rows, { label: "Committee by layer", fixed: true }));
  }, () => M.id("controls-committee").append(M.choice("By", "committee", [{ value: "all", label: "all tokens" }, { value: "last", label: "last token of each document" }])));
})();
