"use strict";
// The page's own small library: data, state, drawing of sections, elements from text only.
const M = {};
(function () {
  const root = document.documentElement;
  const errors = [];
  M.fail = function (message) {
    errors.push(String(message));
    root.dataset.errors = errors.join(" | ");
  };
  window.addEventListener("error", (event) => M.fail(event.message));
  window.addEventListener("unhandledrejection", (event) => M.fail(event.reason));
  document.addEventListener("securitypolicyviolation", (event) => M.fail(`blocked: ${event.violatedDirective} ${event.blockedURI}`));

  M.data = JSON.parse(document.getElementById("data").textContent);
  M.layers = M.data.layers;
  M.offsets = [];
  M.layers.reduce((sum, layer) => (M.offsets.push(sum), sum + layer.experts), 0);

  // Text only ever enters the page here, as a text node.
  M.h = function (tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) continue;
      if (name === "style") Object.assign(element.style, value);
      else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else element.setAttribute(name, value === true ? "" : value);
    }
    for (const child of children.flat(Infinity)) {
      if (child === null || child === undefined) continue;
      element.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return element;
  };
  M.id = (id) => document.getElementById(id);
  M.fill = (host, ...children) => host.replaceChildren(...children.flat(Infinity).filter((c) => c !== null && c !== undefined));
  M.absent = (text) => M.h("p", { class: "absent" }, text);

  // What an imported run does not know: the figure says why, and offers nothing to choose.
  M.missing = function (name, what) {
    const reason = M.data.absent[what];
    if (!reason) return false;
    M.fill(M.id(`plot-${name}`), M.absent(`Absent: ${reason}.`));
    for (const part of ["controls", "table"]) {
      const host = M.id(`${part}-${name}`);
      if (host) host.style.display = "none";
    }
    return true;
  };

  // Columns to rows; the view of the chosen phase.
  M.rows = function (columns) {
    const names = Object.keys(columns);
    const size = names.length ? columns[names[0]].length : 0;
    return Array.from({ length: size }, (_, i) => Object.fromEntries(names.map((n) => [n, columns[n][i]])));
  };
  M.view = () => M.data.views[M.state.phase];
  M.name = (layerIndex, expert) => `L${M.layers[layerIndex].layer}E${expert}`;
  M.cell = (layerIndex, expert) => M.offsets[layerIndex] + expert;
  M.place = function (cell) {
    const layer = d3.bisectRight(M.offsets, cell) - 1;
    return { layer, expert: cell - M.offsets[layer] };
  };
  M.share = function (kind, group, cell) {
    const all = M.view().rates[kind];
    const value = all ? all[group][cell] : null;
    return value === null || value === undefined ? null : value / 10000;
  };

  // Numbers: one format for each kind of quantity.
  const minus = (text) => text.replace("-", "−");
  const known = (format) => (v) => (v === null || v === undefined || Number.isNaN(v) ? "–" : minus(format(v)));
  M.known = known;
  M.fmt = {
    percent: known((v) => `${(100 * v).toFixed(v !== 0 && Math.abs(v) < 0.01 ? 2 : 1)} %`),
    points: known((v) => `${v > 0 ? "+" : ""}${(100 * v).toFixed(1)}`),
    lift: known((v) => (v >= 1e6 ? "> 1,000,000" : v >= 100 ? d3.format(",.0f")(v) : v.toFixed(2))),
    two: known((v) => v.toFixed(2)),
    three: known((v) => v.toFixed(3)),
    bits: known((v) => (Math.abs(v) < 0.0995 ? v.toFixed(4) : v.toFixed(2))),
    p: known((v) => (v < 0.001 ? "< 0.001" : v.toFixed(3))),
    count: known((v) => d3.format(",")(v)),
    number: known((v) => String(v)),
    text: (v) => (v === null || v === undefined ? "–" : String(v)), // as it is: hyphens stay
  };
  // For axes: as many digits as the step between two ticks needs, so that no two read alike.
  M.ticks = (unit = "", factor = 1) => (v, i, all) => {
    const step = factor * Math.abs(all.length > 1 ? all[1] - all[0] : v || 1);
    const digits = Math.max(0, Math.min(8, Math.ceil(-Math.log10(step) - 1e-9)));
    const short = (n) => Math.abs(n * 10 ** digits - Math.round(n * 10 ** digits)) < 1e-6;
    return minus((factor * v).toFixed(all.every((t) => short(factor * t)) ? digits : digits + 1)) + unit;
  };
  M.interval = (low, high, format) => (low === null ? "–" : `${format(low).replace(" %", "")} to ${format(high)}`);
  M.tokenText = function (id) {
    const text = M.data.texts[id];
    return text === undefined ? `#${id}` : text;
  };
  // For tables: spaces and line ends made visible.
  M.tokenShown = (text) => text.replace(/^ /, "␣").replace(/ $/, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
  M.shorten = (text, size) => (text.length > size ? `${text.slice(0, size - 1)}…` : text);

  // State: every section says which parts of it it depends on.
  const sections = [];
  M.state = { phase: M.data.phases[0], layer: 0 };
  M.section = function (name, keys, draw, setup) {
    sections.push({ name, keys, draw, setup });
  };
  // A section only where the page has its figure: what is absent is not drawn.
  M.figure = function (name, keys, draw, setup) {
    if (M.id(`plot-${name}`)) M.section(name, keys, draw, setup);
  };
  M.start = (script) => script(); // until what a script needs is at hand
  M.drawn = []; // called once, when everything has been drawn
  function run(section, what) {
    try {
      section[what]();
    } catch (error) {
      M.fail(`${section.name}: ${error.message}`);
      const host = M.id(`plot-${section.name}`);
      if (host) M.fill(host, M.absent(`This figure could not be drawn: ${error.message}`));
    }
  }
  M.set = function (patch) {
    Object.assign(M.state, patch);
    const changed = Object.keys(patch);
    sections.filter((s) => s.keys.some((k) => changed.includes(k))).forEach((s) => run(s, "draw"));
    listeners.filter((l) => changed.includes(l.key)).forEach((l) => l.update());
  };
  const listeners = [];
  M.watch = (key, update) => listeners.push({ key, update });
  M.setup = () => sections.filter((s) => s.setup).forEach((s) => run(s, "setup"));
  M.redraw = () => sections.forEach((s) => run(s, "draw"));

  // A figure's parts.
  M.title = function (name, text, sub) {
    M.fill(M.id(`title-${name}`), document.createTextNode(text), sub ? M.h("span", { class: "sub" }, sub) : null);
  };
  // A vertical axis: as many ticks as there is room for, and its name above the topmost (from a top margin of 26).
  M.yAxis = (label, height, unit, factor) => ({ grid: true, ticks: Math.max(2, Math.min(5, Math.floor(height / 32))), tickSize: 0, label, labelAnchor: "top", labelArrow: "none", tickFormat: M.ticks(unit, factor) });
  // A horizontal logarithmic axis, with as many round numbers as do not touch: a scale, and marks to draw first.
  M.logAxis = function (label, low, high, width) {
    const at = (v) => (width * Math.log(v / low)) / Math.log(high / low);
    const powers = d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1);
    const made = [[1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]].map((steps) => powers.flatMap((p) => steps.map((s) => s * 10 ** p)).filter((v) => v >= low && v <= high));
    const ticks = made.find((all) => d3.pairs(all).every(([a, b]) => at(b) - at(a) >= 34)) || made[3];
    return {
      scale: { type: "log", domain: [low, high], axis: null },
      marks: [Plot.gridX(ticks), Plot.axisX(ticks, { text: (v) => String(+v.toPrecision(2)), label, labelArrow: "none" })],
    };
  };
  M.style = { background: "transparent", fontSize: "11px", fontFamily: "inherit" };
  M.width = (name) => Math.max(240, M.id(`plot-${name}`).clientWidth || 600);
})();
