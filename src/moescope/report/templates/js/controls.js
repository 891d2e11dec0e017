"use strict";
// Buttons, chips, selects and the layer chooser; each writes one key of the state.
(function () {
  const control = (label, ...children) =>
    M.h("div", { class: "control", role: "group", "aria-label": label }, M.h("span", { class: "name" }, label), children);

  M.labelled = (label, element) => M.h("div", { class: "control" }, M.h("span", { class: "name" }, label), element);
  M.select = function (label, key, options) {
    const select = M.h("select", { "aria-label": label, onchange: () => M.set({ [key]: options[select.selectedIndex].value }) },
      options.map((o) => M.h("option", {}, M.shorten(o.label, 60))));
    const update = () => {
      select.selectedIndex = options.findIndex((o) => o.value === M.state[key]);
    };
    M.watch(key, update);
    update();
    return select;
  };

  // One of a few as buttons, one of many as a select. options: [{value, label}]
  M.choice = function (label, key, options, few = 6) {
    if (options.length > few || options.some((o) => o.label.length > 30)) {
      return M.labelled(label, M.select(label, key, options));
    }
    const buttons = options.map((o) => M.h("button", { type: "button", onclick: () => M.set({ [key]: o.value }) }, o.label));
    const update = () => buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(options[i].value === M.state[key])));
    M.watch(key, update);
    update();
    return control(label, M.h("span", { class: "segments" }, buttons));
  };

  // The layer, shared by all figures that show one.
  M.layerControl = function () {
    if (M.layers.length <= 16) {
      return M.choice("Layer", "layer", M.layers.map((l, i) => ({ value: i, label: String(l.layer) })), 16);
    }
    const slider = M.h("input", {
      type: "range", min: 0, max: M.layers.length - 1, step: 1, "aria-label": "Layer",
      oninput: () => M.set({ layer: Number(slider.value) }),
    });
    const shown = M.h("b", {});
    const step = (by) => M.set({ layer: Math.max(0, Math.min(M.layers.length - 1, M.state.layer + by)) });
    const update = () => {
      slider.value = M.state.layer;
      slider.setAttribute("aria-valuetext", `layer ${M.layers[M.state.layer].layer}`);
      shown.textContent = M.layers[M.state.layer].layer;
    };
    M.watch("layer", update);
    update();
    return control("Layer", M.h("button", { type: "button", "aria-label": "one layer earlier", onclick: () => step(-1) }, "←"), slider,
      M.h("button", { type: "button", "aria-label": "one layer later", onclick: () => step(1) }, "→"), shown);
  };

  // Domains that a figure shows: any number of them. State holds the list of names. Where they are many,
  // those that are shown have a chip, and the others are in a list.
  M.domainChips = function (key, many = 16) {
    const names = M.data.views[M.data.phases[0]].domains;
    if (names.length < 2) return null;
    const put = (next) => next.length && M.set({ [key]: names.filter((n) => next.includes(n)) });
    const chip = (name) => {
      const on = M.state[key].includes(name);
      return M.h("button", {
        type: "button", class: "chip", title: name, "aria-pressed": String(on),
        onclick: () => put(on ? M.state[key].filter((n) => n !== name) : [...M.state[key], name]),
      }, M.domainMark(names.indexOf(name), `var(--d${names.indexOf(name) % 8})`), M.h("span", {}, name));
    };
    const host = M.h("span", { class: "segments" });
    const update = () => {
      const rest = names.filter((n) => !M.state[key].includes(n));
      const add = M.h("select", { "aria-label": "Add a domain", onchange: () => put([...M.state[key], rest[add.selectedIndex - 1]]) }, ["add …", ...rest].map((n) => M.h("option", {}, M.shorten(n, 60))));
      M.fill(host, (names.length > many ? M.state[key] : names).map(chip), names.length > many && rest.length ? add : null);
    };
    M.watch(key, update);
    update();
    return control("Domains", host);
  };

  M.toggle = function (label, key) {
    const box = M.h("input", { type: "checkbox", style: { minHeight: "0" }, onchange: () => M.set({ [key]: box.checked }) });
    box.checked = Boolean(M.state[key]);
    return M.h("label", { class: "control" }, box, label);
  };

  M.legend = function (entries) {
    return M.h("div", { class: "legend" }, entries.map((e) =>
      M.h("span", {}, M.h("span", { class: "swatch", style: { background: e.color, ...(e.style || {}) } }), e.label)));
  };

  // A colour scale with ticks. ticks: [[position 0–1, text]]
  M.scaleLegend = function (color, low, high, ticks, label) {
    const width = 300;
    const canvas = M.h("canvas", { width, height: 10, "aria-hidden": "true" });
    const pen = canvas.getContext("2d");
    for (let x = 0; x < width; x++) {
      pen.fillStyle = color(low + ((high - low) * x) / (width - 1));
      pen.fillRect(x, 0, 1, 10);
    }
    // a tick close to the left end would cover the one before it, so that one gives way
    const kept = ticks.filter((t, i) => i > 0 || ticks[1][0] > 0.3);
    const side = (at) => (at < 0.3 ? "first" : at > 0.7 ? "last" : null);
    const marks = kept.map(([at, text]) => M.h("span", { class: side(at), style: { left: `${at * width}px` } }, text));
    return M.h("div", { class: "legend" }, M.h("span", {}, label), M.h("span", { class: "scale" }, canvas, M.h("span", { class: "ticks", style: { width: `${width}px` } }, marks)));
  };
})();
