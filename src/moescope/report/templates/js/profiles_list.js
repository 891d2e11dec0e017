"use strict";
// The experts that match a search, and moving from one to the next.
M.start(function () {
  if (M.size < 2) return;
  const STEP = 80;
  let shown = STEP;
  const SORTS = {
    order: { label: "by layer", value: (_, i) => i },
    load: { label: "by load", value: (p) => -p.load },
    lift: { label: "by strongest domain", value: (p) => -p.top_lift },
    vocabulary: { label: "by vocabulary", value: (p) => -p.vocabulary_excess },
    contribution: { label: "by contribution", value: (p) => -p.contribution_mean },
    sure: { label: "by assignments", value: (p) => -p.count },
  };
  M.sorted = () => d3.sort(M.found(), (i) => SORTS[M.state.sort].value(M.profile(i), i), (i) => i);

  function setup() {
    const search = M.h("input", { type: "search", placeholder: "a token, a word, L3, L3E17", "aria-label": "Search experts by name, token or word", oninput: () => M.set({ search: search.value }) });
    const roles = [{ value: "", label: "all" }, ...M.data.roles.map((r) => ({ value: r, label: M.ROLES[r] || r }))];
    const domains = [{ value: "", label: "any" }, ...M.data.domains.map((d) => ({ value: d, label: M.shorten(d, 40) }))];
    const flags = [...new Set(M.data.tables.experts.flags.flat())].sort();
    const flagged = [{ value: "", label: "any" }, ...flags.map((f) => ({ value: f, label: f })), ...["high", "moderate", "low"].map((v) => ({ value: v, label: `sure: ${v}` }))];
    const clear = M.h("button", { type: "button", onclick: () => {
      search.value = "";
      M.set({ search: "", role: "", domain: "", flag: "" });
    } }, "clear");
    M.id("controls-filter").append(M.labelled("Search", search), M.labelled("Show", M.select("Show experts that", "role", roles)),
      M.data.domains.length > 1 ? M.labelled("Serves", M.select("Serves a domain", "domain", domains)) : "",
      M.labelled("Flag", M.select("Flag or sureness", "flag", flagged)), clear);
    sorter = M.select("Order of the list", "sort", Object.entries(SORTS).map(([value, s]) => ({ value, label: s.label })));
    ["search", "role", "domain", "flag", "sort"].forEach((key) => M.watch(key, () => {
      shown = STEP;
    }));
  }
  let sorter = null;

  // Where no domain stands out, its typical tokens say more.
  function inWords(p) {
    if (p.role_kind !== "none") return p.role_words;
    const typical = p.lists.tokens.filter((t) => t.lift >= M.data.rules.typical).slice(0, 5);
    return typical.length ? typical.map((t) => t.token.trim() || M.tokenShown(t.token)).join(" · ") : p.role_words;
  }

  M.section("list", ["search", "role", "domain", "flag", "sort", "shown"], () => {
    const found = M.sorted();
    const host = M.id("plot-list");
    const count = M.filtered() ? `${M.fmt.count(found.length)} of ${M.fmt.count(M.size)} experts` : `${M.fmt.count(M.size)} experts`;
    const items = found.slice(0, shown).map((i) => {
      const p = M.profile(i);
      const link = M.h("a", { href: `#${p.name}`, title: `${p.name}: ${p.role_words}` },
        M.h("span", { class: "swatch", style: { background: M.roleColor(p), outline: "1px solid var(--faint)" } }), M.h("b", {}, p.name), M.h("span", {}, inWords(p)));
      link.dataset.expert = i;
      return M.h("li", {}, link);
    });
    const list = M.h("ol", {}, items.length ? items : M.h("li", { class: "absent", style: { padding: ".6rem .8rem" } }, "No expert matches; clear the search to see all."));
    list.addEventListener("keydown", walk);
    const more = found.length > shown ? M.h("button", { type: "button", class: "more", onclick: () => {
      shown += 4 * STEP;
      M.set({ shown });
    } }, `show more (${M.fmt.count(found.length - shown)} left)`) : null;
    M.fill(host, M.h("p", { class: "count" }, M.h("span", {}, count), sorter), list, more);
    current();
  }, setup);

  // The chosen one is marked and kept in sight.
  function current() {
    const host = M.id("plot-list");
    host.querySelectorAll("a[aria-current]").forEach((a) => a.removeAttribute("aria-current"));
    const mine = host.querySelector(`a[data-expert="${M.state.expert}"]`);
    if (!mine) return;
    mine.setAttribute("aria-current", "true");
    const list = mine.closest("ol");
    const [top, height] = [mine.offsetTop - list.offsetTop, mine.offsetHeight];
    if (top < list.scrollTop || top + height > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 2;
  }
  M.watch("expert", current);

  function walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const links = [...event.currentTarget.querySelectorAll("a")];
    const now = links.indexOf(document.activeElement);
    if (!step || now < 0) return;
    event.preventDefault();
    const next = links[Math.max(0, Math.min(links.length - 1, now + step))];
    next.focus({ preventScroll: false });
    M.choose(Number(next.dataset.expert), true);
  }
});
