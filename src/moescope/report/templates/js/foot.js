"use strict";
// The foot: what is needed to make this run again.
(function () {
  const about = M.data.about;
  const none = (v) => v === null || v === undefined || v === "" || (Array.isArray(v) && !v.length);
  const shown = (v) => (none(v) ? "–" : typeof v === "boolean" ? (v ? "yes" : "no") : Array.isArray(v) ? v.map(shown).join(", ") : typeof v === "object" ? JSON.stringify(v) : String(v));
  const listing = (title, entries) =>
    M.h("div", {}, M.h("h3", {}, title), M.table([{ key: "name", label: "", text: true }, { key: "value", label: "", mono: true }],
      entries.map(([name, value]) => ({ name: name.replaceAll("_", " "), value: shown(value) })), { fixed: true, label: title }));

  M.section("reproduce", ["never"], () => {
    document.querySelectorAll("[data-fill]").forEach((e) => {
      e.textContent = M.fmt.count(about[e.dataset.fill]);
    });
    const source = about.source && Object.entries(about.source).filter(([name]) => !["absent", "notes", "files"].includes(name));
    const files = about.source ? about.source.files.slice(0, 40).map((f, i) => [`file ${i + 1} of ${about.source.files.length}`, `${f.file} · sha256 ${f.sha256}`]) : [];
    M.fill(M.id("plot-reproduce"), M.h("div", { class: "panels wide" },
      listing("Model", Object.entries(about.model)),
      listing("Options", Object.entries(about.options)),
      source ? listing("Source", [...source, ...files]) : null,
      listing("Corpus", [...Object.entries(about.corpus), ["text fingerprint", about.fingerprint]]),
      listing("Versions", [...Object.entries(about.versions), ["run begun", about.created]])));
  });
})();
