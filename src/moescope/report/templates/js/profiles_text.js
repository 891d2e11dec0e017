"use strict";
// Parts of a profile that are text: tokens in, contexts, what it pushes towards and away from.
M.start(function () {
  const { cellOf: cell, headOf: head } = M;
  const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/\r/g, "␍");
  const token = (text) => M.h("span", { class: "token", title: visible(text) }, visible(text).replace(/^ +| +$/g, (s) => "␣".repeat(s.length)) || "∅");

  M.parts.tokens = (p) => M.partOf("Tokens in", p, "tokens_in", (rows) => {
    const notes = [`Token ids that it serves beyond its overall rate, those with the most occurrences beyond it first, at least ${M.data.constants.tokens_in.min_count} times; of ${M.fmt.count(p.tokens_in_assignments)} assignments.`];
    if (p.tokens_in_overlap !== null) notes.push(` Two halves of the documents share ${M.fmt.percent(p.tokens_in_overlap)} of the list.`);
    if (!p.absent.vocabulary) {
      const [a, b, half] = [p.vocabulary_excess_half_a, p.vocabulary_excess_half_b, p.vocabulary_half_types];
      notes.push(` Vocabulary excess ${M.fmt.two(p.vocabulary_excess)}${a === null ? "" : ` (halves ${M.fmt.two(a)}, ${M.fmt.two(b)})`}: half of its assignments are ${half === 1 ? "a single token id" : `${M.fmt.count(half)} token ids`}, half of the text is ${M.fmt.count(p.vocabulary_text_half_types)}.`);
    }
    if (!rows.length) return M.part("Tokens in", notes.join(""), M.absent("No token id stands out."));
    const top = d3.max(rows, (r) => r.share) || 1;
    const cells = rows.flatMap((r) => [
      cell("name", token(r.token)), M.range((x) => (100 * x) / top, { bars: [{ from: 0, to: r.share }] }),
      cell("num", M.fmt.percent(r.share)), cell("num", `${M.fmt.lift(r.lift)}×`), cell("num soft wide", M.fmt.count(r.count)), cell("num soft wide", r.documents === null ? "–" : M.fmt.count(r.documents)),
    ]);
    return M.part("Tokens in", notes.join(""), M.h("div", { class: "rows token-rows" }, head([["token"], ["of its assignments"], ["", "num"], ["lift", "num"], ["times", "num wide"], ["sampled docs", "num wide"]]), cells));
  }, p.lists.tokens);

  function pushed(rows, kind, x) {
    const cells = rows.flatMap((r) => [
      cell("name", token(r.token)),
      M.h("span", { title: `own ${M.fmt.three(r.own)}, the layer's others ${M.fmt.three(r.others)}; halves ${M.fmt.three(r.half_a)} and ${M.fmt.three(r.half_b)}` }, M.range(x, { bars: [{ from: 0, to: r.beyond, class: kind }], dots: [r.half_a, r.half_b], zero: 0 })),
      cell("num", M.fmt.three(r.beyond)), cell("num soft wide", M.fmt.three(r.others)),
    ]);
    return M.h("div", { class: "rows push-rows" }, head([["token"], ["beyond the others"], ["Δlogit", "num"], ["others", "num wide"]]), cells);
  }
  M.parts.pushes = (p) => M.partOf("Pushes towards and away from", p, "pushes", ({ promoted, suppressed }) => {
    const size = d3.max([...promoted, ...suppressed], (r) => Math.max(Math.abs(r.beyond), Math.abs(r.half_a || 0), Math.abs(r.half_b || 0))) || 1;
    const notes = [
      `Mean change of a token's logit by what it adds, minus the mean over the vocabulary; ranked by what goes beyond the layer's other experts. Ticks: each half of the documents. ${M.fmt.count(p.pushes_tokens)} measured assignments; halves agree with a rank correlation of ${M.fmt.two(p.pushes_agreement)} over the vocabulary, and share ${M.fmt.percent(p.pushes_promoted_overlap)} of the promoted and ${M.fmt.percent(p.pushes_suppressed_overlap)} of the suppressed top ${M.data.rules.agreed}.`,
    ];
    if (p.pushes_factor !== 1) notes.push(` The experts' output enters the stream times ${p.pushes_factor}.`);
    if (p.pushes_note) notes.push(` Note: ${p.pushes_note}.`);
    return M.part("Pushes towards and away from", notes.join(""), M.h("div", { class: "columns" },
      M.h("div", {}, M.h("h5", {}, "towards"), pushed(promoted, "", (v) => (100 * v) / size)),
      M.h("div", {}, M.h("h5", {}, "away from"), pushed(suppressed, "down", (v) => (100 * -v) / size))));
  }, p.lists);

  M.parts.contexts = (p) => M.partOf("Where it contributes most", p, "contexts", (rows) => {
    if (!rows.length) return null;
    const items = rows.map((c) => M.h("li", {},
      M.h("span", { class: "of" }, M.h("span", {}, M.h("b", {}, M.fmt.two(c.contribution))), M.h("span", { title: `${c.doc}, position ${c.pos}` }, M.domainIndex.has(c.domain) ? [M.h("span", { class: "swatch", style: { background: M.domainColor(M.domainIndex.get(c.domain)), marginRight: ".35rem" } }), c.domain] : c.doc)),
      M.h("p", {}, c.before.replace(/^\s+/, ""), M.h("mark", {}, c.token === "" ? "∅" : c.token.replace(/\n/g, "⏎\n")), c.after)));
    return M.part("Where it contributes most", "The tokens with the largest ‖w·E(x)‖ in their text; the same token between the same neighbours is shown once, a document at most twice.", M.h("ol", { class: "contexts" }, items));
  });
});
