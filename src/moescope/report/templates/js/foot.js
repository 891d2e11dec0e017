"use strict";
// The foot: what is needed to make this run again.
(function () {
  const about = M.data.about;
  const shown = (v) => (v === null || v === undefined || v === "" ? "–" : typeof v === "object" ? JSON.stringify(v) : String(v));
  const listing = (title, entries) =>
    M.h("div", {}, M.h("h3", {}, title), M.table([{ key: "name", label: "", text: true }, { key: "value", label: "", mono: true }],
      entries.map(([name, value]) => ({ name: name.replaceAll("_", " "), value: shown(value) })), { fixed: true, label: title }));

  M.section("reproduce", ["never"], () => {
    document.querySelectorAll("[data-fill]").forEach((e) => {
      e.textContent = M.fmt.count(about[e.dataset.fill]);
    });
    M.fill(M.id("plot-reproduce"), M.h("div", { class: "panels wide" },
      listing("Model", Object.entries(about.model)),
      listing("Options", Object.entries(about.options)),
      listing("Corpus", [...Object.entries(about.corpus), ["text fingerprint", about.fingerprint]]),
      listing("Versions", [...Object.entries(about.versions), ["run begun", about.created]])));
  });
})();
