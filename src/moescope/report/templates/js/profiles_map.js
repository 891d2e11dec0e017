"use strict";
// Layer × expert: every expert a cell, coloured by a chosen quantity; click or arrow keys choose one.
M.start(function () {
  if (M.size < 2) return;
  const widest = d3.max(M.layers, (l) => l.experts);
  const ROLES = {
    domain: "serves a domain", avoids: "used less for a domain", none: "no domain stands out", "token expert": "token expert",
    "too few tokens": "too few tokens", dead: "dead", "never chosen": "never chosen", untested: "domains not compared",
  };
  M.ROLES = ROLES;

  // The colour of a domain in three strengths of lift, far enough apart to be told from each other.
  const LIFTS = [{ below: 2, part: 0.48, words: "lift below 2×" }, { below: 4, part: 0.74, words: "2× to 4×" }, { below: Infinity, part: 1, words: "4× and more" }];
  const fuller = (color, lift) => d3.interpolateRgb(M.css("panel"), color)(LIFTS.find((l) => lift !== null && lift < l.below)?.part ?? 1);

  // More domains than colours that are easily told apart: two letters, or a number, name each too.
  const letters = M.data.domains.map((d) => d.slice(0, 2).toLowerCase());
  const signs = M.data.domains.length <= 8 ? null : new Set(letters).size === letters.length ? letters : letters.map((_, i) => String(i + 1));
  const SIGN = 17; // a cell in which it can be read
  const signOf = (p) => (signs && p.role_kind === "domain" && M.domainIndex.has(p.role_about) ? signs[M.domainIndex.get(p.role_about)] : "");
  const readable = (color) => (d3.lab(color).l > 58 ? "#14171b" : "#ffffff");

  function roleColor(p) {
    const at = M.domainIndex.get(p.role_about);
    if (p.role_kind === "domain" && at !== undefined) return fuller(M.domainColor(at), p.top_lift);
    return { avoids: M.css("grey"), "token expert": M.css("ink"), none: M.css("band"), untested: M.css("band"), dead: M.css("bad"), "never chosen": M.css("bad") }[p.role_kind] || M.css("empty");
  }
  M.roleColor = roleColor;

  // Colour of every cell and the legend of the chosen quantity.
  function scale() {
    const key = M.state.color;
    const quantity = M.QUANTITIES[key];
    if (key === "role") return { color: (i) => roleColor(M.profile(i)), legend: roleLegend(), told: (i) => M.profile(i).role_words };
    const values = d3.range(M.size).map((i) => quantity.of(M.profile(i), M.place(i).layer));
    const sorted = values.filter((v) => v !== null && (!quantity.log || v > 0)).sort(d3.ascending);
    const told = (i) => (values[i] === null ? "not known" : `${quantity.label}: ${quantity.format(values[i])}`);
    if (quantity.log) {
      const size = (v) => Math.log2(Math.max(v, 1e-3));
      const limit = Math.max(1, Math.min(5, d3.max([d3.quantile(sorted, 0.01), d3.quantile(sorted, 0.99)], (v) => Math.abs(size(v || 1)))));
      const color = M.diverging(limit);
      const ticks = [[0, `${quantity.format(2 ** -limit)} or less`], [0.5, "1×"], [1, `${quantity.format(2 ** limit)} or more`]];
      return { color: (i) => (values[i] === null ? null : color(size(values[i]))), legend: M.scaleLegend(color, -limit, limit, ticks, quantity.label), told };
    }
    const top = quantity.top || d3.quantile(sorted, 0.99) || 1;
    const color = M.sequential(top);
    const legend = M.scaleLegend(color, 0, top, [[0, "0"], [1, quantity.format(top) + (quantity.top ? "" : " or more")]], quantity.label);
    return { color: (i) => (values[i] === null ? null : color(values[i])), legend, told };
  }
  const flagColor = (flag) => (flag === "super" ? "warn" : "bad");
  function roleLegend() {
    const domains = M.data.domains.map((name, i) => ({ name, i })).filter((d) => (M.data.uses[d.name] || {}).more);
    const entries = domains.map((d) => ({ color: M.domainColor(d.i), label: `${signs ? `${signs[d.i]}: ` : ""}serves ${M.shorten(d.name, 26)} (${M.data.uses[d.name].more})` }));
    const others = d3.rollup(d3.range(M.size).map(M.profile).filter((p) => p.role_kind !== "domain"), (v) => v.length, (p) => p.role_kind);
    for (const [kind, n] of others) entries.push({ color: roleColor({ role_kind: kind }), label: `${ROLES[kind] || kind} (${M.fmt.count(n)})`, style: { outline: "1px solid var(--faint)" } });
    const legend = M.legend(entries);
    const flags = new Set(M.data.tables.experts.flags.flat().filter((f) => f !== "token expert"));
    for (const [color, named] of d3.group([...flags].sort(), flagColor)) {
      legend.append(M.h("span", {}, M.h("span", { style: { color: M.css(color) } }, "●"), `flag: ${named.join(", ")}`));
    }
    if (!domains.length) return legend;
    const strengths = LIFTS.map((l) => ({ color: d3.interpolateRgb(M.css("panel"), M.domainColor(domains[0].i))(l.part), label: l.words }));
    return M.h("div", {}, legend, M.legend(strengths));
  }

  const labels = {
    rows: M.layers.length, cols: widest, rowLabel: (i) => String(M.layers[i].layer), colLabel: String, xTitle: "expert →", yTitle: "layer",
  };
  // A map in a host: {width, ch, axes}. Gives back what draws it again.
  function mapIn(host, made, { width, ch, axes }) {
    const [left, top, bottom] = axes ? [44, 4, 38] : [0, 0, 0];
    const least = axes ? (signs && widest <= 64 && M.state.color === "role" ? SIGN : 4) : 1;
    const cw = Math.max(least, Math.min(36, (width - left - (axes ? 8 : 0)) / widest));
    const size = [Math.ceil(left + cw * widest + (axes ? 8 : 0)), Math.ceil(top + ch * M.layers.length + bottom)];
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const canvas = M.h("canvas", {
      class: axes ? "experts" : "experts small", tabindex: axes ? 0 : -1, role: "img", width: Math.round(size[0] * ratio), height: Math.round(size[1] * ratio),
      style: { width: `${size[0]}px`, height: `${size[1]}px` }, "aria-label": "Map of all experts by layer and number. The arrow keys choose one; its profile is below.",
    });
    const pen = canvas.getContext("2d");
    function draw() {
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, ...size);
      const filtered = M.filtered();
      for (let i = 0; i < M.size; i++) {
        const at = M.place(i);
        const [x, y] = [left + at.expert * cw, top + at.layer * ch];
        pen.globalAlpha = !filtered || M.matches(i) ? 1 : 0.13;
        pen.fillStyle = made.color(i) || M.css("empty");
        pen.fillRect(x, y, cw - (cw >= 7 ? 1.5 : cw >= 4 ? 0.5 : 0), ch - (ch >= 6 ? 1.5 : ch >= 4 ? 0.5 : 0));
        if (axes && M.state.color === "role" && cw >= SIGN) write(pen, signOf(M.profile(i)), x + cw / 2, y + ch / 2, pen.fillStyle);
        if (axes) mark(pen, M.profile(i), x, y, cw, ch);
      }
      pen.globalAlpha = 1;
      if (axes) M.mapAxes(pen, labels, left, top, cw, ch);
      const chosen = M.place(M.state.expert);
      pen.strokeStyle = M.css("ink");
      pen.lineWidth = 2.5;
      pen.strokeRect(left + chosen.expert * cw - 1.2, top + chosen.layer * ch - 1.2, cw + 1, ch + 1);
      canvas.dataset.marks = String(M.size);
    }
    const under = (event) => {
      const box = canvas.getBoundingClientRect();
      const at = { expert: Math.floor((event.clientX - box.left - left) / cw), layer: Math.floor((event.clientY - box.top - top) / ch) };
      if (!M.layers[at.layer] || at.expert < 0 || at.expert >= M.layers[at.layer].experts) return null;
      return M.cell(at.layer, at.expert);
    };
    reactTo(canvas, under, made);
    M.fill(host, M.h("div", { class: "scroll" }, canvas));
    draw();
    return draw;
  }
  function write(pen, sign, x, y, under) {
    pen.fillStyle = readable(under);
    pen.font = `10px ${M.css("sans")}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(sign, x - 0.5, y);
  }
  function reactTo(canvas, under, made) {
    canvas.addEventListener("pointermove", (event) => {
      const i = under(event);
      if (i === null) return M.tip.hide();
      const p = M.profile(i);
      M.tip.show(event.clientX, event.clientY, M.h("div", {}, M.h("b", {}, p.name), ` ${p.role_words}`),
        M.state.color === "role" ? null : M.h("div", {}, made.told(i)), M.h("div", { class: "strip" }, M.shorten(p.summary.replace(/^[^ :]+:? ?/, ""), 220)));
      return undefined;
    });
    canvas.addEventListener("pointerleave", () => M.tip.hide());
    canvas.addEventListener("click", (event) => {
      const i = under(event);
      if (i !== null) M.choose(i);
    });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      event.stopPropagation();
      const now = M.place(M.state.expert);
      const layer = Math.max(0, Math.min(M.layers.length - 1, now.layer + move[0]));
      const expert = Math.max(0, Math.min(M.layers[layer].experts - 1, now.expert + move[1]));
      M.choose(M.cell(layer, expert), true);
    });
  }

  let draws = [];
  function build() {
    const made = scale();
    M.fill(M.id("legend-map"), made.legend);
    M.title("map", M.state.color === "role" ? "What stands out, by layer and expert" : M.QUANTITIES[M.state.color].title);
    const rows = M.layers.length;
    draws = [
      mapIn(M.id("plot-map"), made, { width: M.width("map"), ch: rows <= 8 ? 26 : rows <= 20 ? 17 : rows <= 36 ? 12 : 9, axes: true }),
      mapIn(M.id("plot-above"), made, { width: M.id("plot-above").clientWidth, ch: Math.min(8, Math.max(2, (0.16 * window.innerHeight) / rows)), axes: false }),
    ];
  }
  // A dot for flags, so that they can be seen whatever the colour.
  function mark(pen, p, x, y, cw, ch) {
    if (!p.flags.some((f) => f !== "token expert") || cw < 6) return;
    pen.beginPath();
    pen.arc(x + cw / 2 - 0.5, y + ch / 2 - 0.5, Math.min(3, cw / 4, ch / 4), 0, 7);
    pen.fillStyle = M.css(p.flags.some((f) => flagColor(f) === "warn") ? "warn" : "bad");
    pen.fill();
    pen.strokeStyle = M.css("panel");
    pen.lineWidth = 1;
    pen.stroke();
  }
  M.section("map", ["color"], build, () => {
    const options = M.offered.map((k) => ({ value: k, label: M.QUANTITIES[k].label }));
    M.id("controls-map").append(M.choice("Colour", "color", options, 10));
    ["expert", "search", "role", "domain", "flag"].forEach((key) => M.watch(key, () => draws.forEach((draw) => draw())));
  });
});
