"use strict";
// Lines along the steps of training: axes, smoothing, labels at the ends.
(function () {
  const figure = M.figure;
  M.figure = (name, keys, draw, setup) => figure(name, [...keys, "scale", "span"], draw, setup);
  const one = (values) => (v) => values.includes(v);
  M.keepOne = (key, values) => M.keep(key, values[0], one(values));

  // Along the steps: all figures share the axis, so that they can be compared.
  M.keepOne("scale", ["linear", "log"]);
  M.keepOne("span", ["all", "late"]);
  M.axisControls = () => [
    M.choice("Steps", "span", [{ value: "all", label: "all" }, { value: "late", label: "latest half" }]),
    M.choice("Axis", "scale", [{ value: "linear", label: "linear" }, { value: "log", label: "log" }]),
  ];
  const ends = [M.data.steps, M.data.domains, M.data.routing].filter(Boolean).flatMap((t) => [t.step[0], t.step[t.step.length - 1]]);
  const [first, last] = ends.length ? d3.extent(ends) : [0, 1];
  M.stepDomain = function () {
    let low = M.state.span === "late" ? (first + last) / 2 : first;
    if (M.state.scale === "log") low = Math.max(1, low);
    return low < last ? [low, last] : [Math.max(M.state.scale === "log" ? 0.5 : -1, low - 1), last + 1];
  };
  const inDomain = (rows) => {
    const [low, high] = M.stepDomain();
    return rows.filter((r) => r.step >= low && r.step <= high);
  };

  // Rows of the step table that know a column.
  const steps = M.data.steps;
  M.stepRows = (key) => !steps || !steps[key] ? [] : steps.step.map((step, i) => ({
    step, from: steps.from[i], to: steps.to[i], tokens: steps.tokens ? steps.tokens[i] : null, value: steps[key][i], index: i,
  }));
  M.when = (r) => (r.from === undefined || r.from === r.to ? `step ${M.fmt.count(Math.round(r.step))}` : `steps ${M.fmt.count(r.from)}–${M.fmt.count(r.to)}`);
  M.pointsAre = () => (steps && steps.each > 1 ? `each point is a mean over ${steps.each} logged steps` : "each point is one logged step");

  // Centred mean (or median) of 2·half + 1 points; narrower at the start, where all moves fast.
  M.smooth = function (rows, half, of = d3.mean) {
    return rows.map((r, i) => {
      const reach = Math.min(half, Math.ceil(i / 4));
      const near = rows.slice(i - reach, i + half >= rows.length ? rows.length : i + reach + 1).map((n) => n.value).filter((v) => v !== null);
      return { ...r, raw: r.value, value: r.value === null || !near.length ? null : of(near) };
    });
  };
  M.half = (points, part) => Math.max(points > 20 ? 2 : points > 6 ? 1 : 0, Math.round(points / part));

  // Numbers of any size.
  M.fmt.any = M.known((v) => d3.format(v !== 0 && (Math.abs(v) < 1e-4 || Math.abs(v) >= 1e7) ? ".3~e" : ",.4~r")(v));
  M.tickPercent = (v) => `${+(v * 100).toFixed(2)} %`;
  // Few enough that d3 labels each of them.
  function logTicks(low, high, many) {
    const decades = Math.log10(high / low);
    if (decades < 1) return d3.ticks(low, high, many);
    const parts = decades < 2 ? [1, 2, 5] : decades < 3.1 ? [1, 3] : [1];
    return d3.range(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)) + 1).flatMap((e) => parts.map((m) => m * 10 ** e)).filter((v) => v >= low * 0.999 && v <= high * 1.001);
  }

  // Lines drawn at different heights give labels that do not cover each other.
  M.apart = function (wanted, gap, low, high) {
    const order = d3.range(wanted.length).sort((a, b) => wanted[a] - wanted[b]);
    const placed = new Array(wanted.length);
    order.reduce((at, i) => (placed[i] = Math.max(low, wanted[i], at + gap)), low - gap);
    [...order].reverse().reduce((at, i) => (placed[i] = Math.min(placed[i], at - gap)), high + gap);
    return placed;
  };
  function endLabels(plot, spec, height, room) {
    const known = spec.labels.filter((l) => l.value !== null && l.value !== undefined);
    const most = Math.max(2, Math.floor((height - 60) / 13));
    const every = Math.ceil(known.length / most);
    const shown = known.filter((l, i) => l.always || i % every === 0);
    const y = plot.scale("y");
    const right = plot.scale("x").range[1];
    const wanted = shown.map((l) => y.apply(l.value));
    const placed = M.apart(wanted, 13, 24, height - 40);
    const layer = d3.select(plot).append("g").attr("aria-hidden", "true").attr("font-size", 11);
    shown.forEach((l, i) => {
      layer.append("path").attr("d", `M${right + 3},${wanted[i]}L${right + 12},${placed[i]}`).attr("stroke", l.color).attr("stroke-opacity", 0.6).attr("fill", "none");
      layer.append("text").attr("x", right + 15).attr("y", placed[i]).attr("dy", "0.35em").attr("text-anchor", "start").attr("fill", l.color).attr("font-weight", l.always ? 700 : 500)
        .text(M.shorten(l.text, Math.floor((room - 16) / 6)));
    });
  }

  // Short marks that end at the right edge of the frame.
  function endMarks(plot, marks) {
    const y = plot.scale("y");
    const right = plot.scale("x").range[1];
    const layer = d3.select(plot).append("g").attr("aria-hidden", "true");
    marks.forEach((m) => layer.append("line").attr("x1", right - 9).attr("x2", right + 1).attr("y1", y.apply(m.value)).attr("y2", y.apply(m.value)).attr("stroke", m.color).attr("stroke-width", 2));
  }

  // spec: width, height, label, unit, tick, zero, top, log (of y), room (for labels), extent (values to include),
  //       lines [{rows, color, dash, width, opacity, free}], dots [{rows, color, r}], refs [{value, color, dash, free, far}],
  //       marks (of Plot), ends [{value, color}], labels [{value, text, color, always}], tips (rows with title);
  //       free: does not stretch the axis; far: not when zoomed in
  M.stepChart = function (spec) {
    const lines = spec.lines.map((l) => ({ ...l, rows: inDomain(l.rows) }));
    const dots = (spec.dots || []).map((d) => ({ ...d, rows: inDomain(d.rows) }));
    // zoomed in, what lies far off gives way
    const free = (r) => r.free || (r.far && M.state.span === "late");
    const refs = (spec.refs || []).filter((r) => r.value !== null && r.value !== undefined);
    const ends = M.state.span === "late" ? [] : spec.ends || [];
    const values = [...lines.filter((l) => !l.free), ...dots].flatMap((l) => l.rows.map((r) => r.value)).filter((v) => v !== null);
    const [low, high] = d3.extent([...values, ...refs.filter((r) => !free(r)).map((r) => r.value), ...ends.map((e) => e.value), ...(spec.extent || []), ...(spec.zero ? [0] : [])]);
    if (!values.length) return M.absent("Nothing is known in this part of the run.");
    const pad = (high - low || Math.abs(high) || 1) * 0.05;
    const domain = spec.log ? [low / 1.1, high * 1.1] : [spec.zero && low >= 0 ? 0 : low - pad, spec.top !== undefined ? Math.max(spec.top, high) : high + pad];
    const height = spec.height || 300;
    const room = spec.labels ? spec.room || 46 : 22;
    const many = Math.max(3, Math.floor((spec.width - room) / 75));
    const across = M.state.scale === "log" ? logTicks(...M.stepDomain(), many) : d3.ticks(...M.stepDomain(), many).filter(Number.isInteger);
    const plot = Plot.plot({
      width: spec.width, height, marginLeft: 56, marginRight: room, marginBottom: 36, marginTop: spec.unit ? 24 : 10,
      style: M.style, ariaLabel: spec.label,
      x: { type: M.state.scale, domain: M.stepDomain(), label: `step${M.state.scale === "log" ? " (log scale)" : ""} →`, labelArrow: "none", ticks: across, tickSize: 3, tickFormat: M.fmt.count },
      y: { type: spec.log ? "log" : "linear", domain, grid: true, ticks: spec.log ? logTicks(...domain, 5) : height < 200 ? 4 : 5, tickSize: 0, label: spec.unit, labelArrow: "none", tickFormat: spec.tick || M.fmt.any },
      marks: [
        ...refs.map((r) => Plot.ruleY([r.value], { stroke: r.color || "currentColor", strokeOpacity: 0.75, strokeDasharray: r.dash || "4 3", strokeWidth: 1.3, clip: true })),
        ...lines.map((l) => Plot.line(l.rows, { x: "step", y: "value", stroke: l.color, strokeWidth: l.width || 1.8, strokeOpacity: l.opacity || 1, strokeDasharray: l.dash || null, clip: true })),
        ...dots.map((d) => Plot.dot(d.rows, { x: "step", y: "value", fill: d.color, r: d.r || 3.2 })),
        ...(spec.marks || []),
        Plot.tip(inDomain(spec.tips).filter((r) => r.value !== null), Plot.pointer({ x: "step", y: "value", title: "title", maxRadius: 50 })),
      ],
    });
    endMarks(plot, ends);
    if (spec.labels) endLabels(plot, spec, height, room);
    return plot;
  };

  // Small charts beside each other. panels: [{title, note, chart(width)}]
  M.panels = function (name, panels, least = 330) {
    const total = M.width(name);
    const columns = Math.max(1, Math.min(panels.length, Math.floor((total + 22) / (least + 22))));
    const width = Math.floor((total - 22 * (columns - 1)) / columns);
    return M.h("div", { class: "panels", style: { gridTemplateColumns: `repeat(${columns}, minmax(0, 1fr))` } }, panels.map((p) =>
      M.h("div", { class: "panel" }, M.h("h4", {}, p.title), p.note ? M.h("p", {}, p.note) : null, M.h("div", { class: "scroll" }, p.chart(width)))));
  };

  M.lineIs = (rows, kind = "mean") => {
    const half = M.half(rows.length, 80);
    return half ? `pale: every point, line: running ${kind} of ${2 * half + 1}` : null;
  };
  M.sub = (...parts) => parts.filter(Boolean).join(" · ");
  // One column of the step table: every point pale, its smoothed line over it.
  M.stepLine = function (key, spec) {
    const rows = M.stepRows(key);
    const half = M.half(rows.length, 80);
    const smooth = M.smooth(rows, half, spec.of);
    const format = spec.format || M.fmt.any;
    const line = spec.plain ? rows : smooth;
    const tips = line.map((r) => ({ ...r, title: `${M.when(r)}\n${format(spec.plain ? r.value : r.raw)}${spec.plain ? "" : `, smoothed ${format(r.value)}`}` }));
    const pale = spec.plain ? [] : [{ rows, color: spec.color, width: 1, opacity: 0.3 }];
    return M.stepChart({ height: 220, ...spec, lines: [...(spec.behind || []), ...pale, { rows: line, color: spec.color }], dots: rows.length < 3 ? [{ rows, color: spec.color }] : [], tips });
  };
  M.key = (color, label, style) => M.h("span", {}, M.h("span", { class: "keys", style: { borderColor: color, ...(style || {}) } }), label);
  M.keys = (...entries) => M.h("div", { class: "legend" }, entries.filter(Boolean));
})();
