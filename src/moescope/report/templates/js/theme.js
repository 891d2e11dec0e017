"use strict";
// Light and dark, colours from the style sheet, and the tooltip.
(function () {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const modes = ["auto", "light", "dark"];
  let mode = "auto";
  function stored(value) {
    try {
      if (value === undefined) return localStorage.getItem("moescope-theme");
      localStorage.setItem("moescope-theme", value);
    } catch {
      return null; // storage can be closed for files; the choice then lasts as long as the page
    }
    return null;
  }
  function apply() {
    root.dataset.theme = mode === "auto" ? (dark.matches ? "dark" : "light") : mode;
  }
  const asked = new URLSearchParams(location.search).get("theme");
  const first = asked || stored();
  if (modes.includes(first)) mode = first;
  apply();
  dark.addEventListener("change", () => {
    apply();
    M.redraw();
  });
  M.themeControl = function () {
    const buttons = modes.map((name) =>
      M.h("button", {
        type: "button",
        "aria-pressed": String(name === mode),
        onclick: () => {
          mode = name;
          stored(name);
          apply();
          buttons.forEach((b, i) => b.setAttribute("aria-pressed", String(modes[i] === name)));
          M.redraw();
        },
      }, name));
    return M.h("div", { class: "control", role: "group", "aria-label": "Colours of the page" }, M.h("span", { class: "segments" }, buttons));
  };

  M.css = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  M.domainColor = (index) => (index < 0 ? M.css("soft") : M.css(`d${index % 8}`));
  // A domain is told by colour and shape together: no two of 56 have both in common.
  M.domainMark = (index, color = M.domainColor(index)) => {
    const svg = d3.create("svg").attr("class", "mark").attr("viewBox", "-8 -8 16 16").attr("aria-hidden", "true");
    const name = M.domainSymbol(index);
    const shape = d3[`symbol${name[0].toUpperCase()}${name.slice(1)}`];
    svg.append("path").attr("d", d3.symbol(shape, 90)()).attr("fill", color);
    return svg.node();
  };
  M.domainSymbol = (index) => M.symbols[Math.max(0, index) % M.symbols.length];
  M.symbols = ["circle", "square", "triangle", "diamond", "star", "wye", "cross"];
  M.sequential = (high) => {
    const ramp = d3.piecewise(d3.interpolateRgb, [0, 1, 2, 3, 4].map((i) => M.css(`seq${i}`)));
    return (v) => ramp(Math.max(0, Math.min(1, high ? v / high : 0)));
  };
  M.diverging = (limit) => {
    const names = ["div-low", "div-midlow", "div-mid", "div-midhigh", "div-high"];
    const ramp = d3.piecewise(d3.interpolateRgb, names.map(M.css));
    return (v) => ramp(Math.max(0, Math.min(1, 0.5 + (limit ? v / (2 * limit) : 0))));
  };

  // One tooltip; it also speaks, being a live region.
  const tip = M.id("tip");
  M.tip = {
    show(x, y, ...children) {
      M.fill(tip, ...children);
      tip.hidden = false;
      const box = tip.getBoundingClientRect();
      const left = Math.min(Math.max(8, x + 14), window.innerWidth - box.width - 8);
      const above = y + 18 + box.height > window.innerHeight;
      tip.style.left = `${Math.max(8, left)}px`;
      tip.style.top = `${Math.max(8, above ? y - box.height - 12 : y + 18)}px`;
    },
    hide() {
      tip.hidden = true;
    },
  };
  window.addEventListener("keydown", (event) => event.key === "Escape" && M.tip.hide());
  window.addEventListener("scroll", () => M.tip.hide(), { passive: true });
})();
