"use strict";
// The two texts side by side, token by token.
(function () {
  const { before, after, first_difference: first } = M.data;
  const count = (n) => `${n} token${n === 1 ? "" : "s"}`;

  function side(text, name, color) {
    const words = text.pieces.map((piece, i) => M.h("span", {
      class: first === null || i < first ? "w same" : i === first ? "w first" : "w", title: `token ${i + 1}, id ${text.token_ids[i]}`,
    }, text.ended && i === text.pieces.length - 1 ? M.shown(piece) : i === first ? M.marked(piece) : piece || "∅"));
    const over = first !== null && first >= text.pieces.length;
    return M.h("div", { class: "side" },
      M.h("h4", {}, M.h("span", { class: "swatch", style: { background: color } }), `${name}, ${count(text.pieces.length)}${text.ended ? ", ended by itself" : ""}`),
      M.h("p", {}, words, over ? M.h("span", { class: "w end" }, " (ends here)") : null));
  }

  M.figure("text", [], () => {
    M.title("text", first === null ? `The text is the same, all ${count(before.pieces.length)}` : first === 0 ? "The texts differ from the first token on" : `The texts are the same for ${count(first)} and differ from then on`,
      M.data.temperature ? `drawn at temperature ${M.data.temperature} from seed ${M.data.seed} on both sides` : "the most probable token at each step");
    M.fill(M.id("plot-text"), M.h("div", { class: "sides" }, side(before, "before", M.before()), side(after, "after", M.after())));
    M.asTable("text", [
      { key: "index", label: "token", format: M.fmt.count }, { key: "before", label: "before", name: true }, { key: "after", label: "after", name: true },
      { key: "same", label: "same", format: (v) => (v ? "yes" : "no") },
    ], () => d3.range(Math.max(before.pieces.length, after.pieces.length)).map((i) => ({
      index: i + 1, before: i in before.pieces ? M.shown(before.pieces[i]) : null, after: i in after.pieces ? M.shown(after.pieces[i]) : null, same: before.token_ids[i] === after.token_ids[i], dim: before.token_ids[i] === after.token_ids[i],
    })));
  });
})();
