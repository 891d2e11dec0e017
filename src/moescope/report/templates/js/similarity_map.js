"use strict";
// Points of one layer on a canvas, coloured by expert, domain or token; a name shows its points alone.
(function () {
  const data = M.data;
  if (!data.maps.length) return;
  const domains = data.views.sample.domains;
  const kinds = [...new Set(data.maps.filter(Boolean).flatMap((m) => Object.keys(m.kinds)))];
  const KINDS = { pca: "PCA", umap: "UMAP" };
  Object.assign(M.state, { kind: kinds[0], color: "expert", view: 0.05, focus: null, find: "" });
  // The name whose points are shown alone; it holds for one colouring of one layer.
  const focus = () => (M.state.focus && M.state.focus.by === M.state.color && M.state.focus.layer === M.state.layer ? M.state.focus.key : null);
  const TOKENS = 8;

  // Names of the groups of a colouring, most points first; color(value) of a point's group.
  function groups(map) {
    const by = M.state.color;
    const counts = d3.rollup(map[by], (v) => v.length, (v) => v);
    const keys = [...counts.keys()];
    if (by === "domain") {
      return { keys: keys.sort(d3.ascending), name: (d) => domains[d], color: (d) => M.domainColor(d), counts };
    }
    if (by === "expert") {
      const experts = data.layers[M.state.layer].experts;
      const light = document.documentElement.dataset.theme === "dark" ? 72 : 52;
      const hue = (e) => ((e * 0.618034) % 1) * 360;
      return { keys: keys.sort(d3.ascending), name: (e) => `E${e}`, color: (e) => d3.hcl(hue(e), 58, light - (e % 3) * 7).formatHex(), counts, experts };
    }
    keys.sort((a, b) => d3.descending(counts.get(a), counts.get(b)));
    const top = new Map(keys.slice(0, TOKENS).map((t, i) => [t, i]));
    return { keys, name: (t) => M.tokenShown(data.texts[t]), color: (t) => (top.has(t) ? M.css(`d${top.get(t)}`) : M.css("grey")), counts, top };
  }

  // With more domains than colours, colour and shape together say which.
  function shapes(pen, domain, x, y, r) {
    const name = M.domainSymbol(domain);
    pen.save();
    pen.translate(x, y);
    d3.symbol(d3[`symbol${name[0].toUpperCase()}${name.slice(1)}`], 5.5 * r * r).context(pen)();
    pen.restore();
  }

  function say(kind, map) {
    const number = data.layers[M.state.layer].layer;
    const made = map.kinds[kind];
    const shares = made.explained;
    const what = kind === "pca"
      ? `PCA shows ${M.fmt.percent(shares[0] + shares[1])} of the variance`
      : `UMAP with ${made.parameters.n_neighbors} neighbours, minimum distance ${made.parameters.min_dist}, seed ${made.parameters.random_state}`;
    // with one document per domain no point elsewhere has the domain, and there is nothing to say
    const full = (made.neighbours || []).filter((f) => f.space === "outputs" && f.share !== null && f.chance > 0);
    const near = full.map((f) => `the ${f.label} for ${M.fmt.percent(f.share)} (chance ${M.fmt.percent(f.chance)})`).join(", ");
    M.title("map", `Layer ${number}: ${what}`, near ? `of the 10 nearest points of other documents, in all dimensions, they share ${near}` : "");
  }

  // What a view shows of an axis: all but a share at each end, since a few far points hide the rest.
  function seen(values) {
    const sorted = [...values].sort(d3.ascending);
    const [low, high] = [d3.quantileSorted(sorted, M.state.view), d3.quantileSorted(sorted, 1 - M.state.view)];
    const room = (high - low) * (M.state.view ? 0.25 : 0.03);
    return [low - room, high + room];
  }

  // Axes of a PCA, in the units of the outputs; at: value → place on the canvas, back: place → value.
  function axes(pen, made, width, height, x, y) {
    pen.font = `11px ${M.css("sans")}`;
    pen.lineWidth = 1;
    const ticks = (scale, size) => d3.ticks(...d3.extent([scale.back(0), scale.back(size)]), Math.max(3, Math.round(size / 110)));
    const label = M.ticks();
    const draw = (scale, size, line, write) => {
      const at = ticks(scale, size);
      at.forEach((v, i) => {
        const place = scale.at(v);
        pen.strokeStyle = v === 0 ? M.css("grey") : M.css("line");
        line(place);
        if (place > 26 && place < size - 12) write(label(v, i, at), place);
      });
    };
    const stroke = (...ends) => (pen.beginPath(), pen.moveTo(ends[0], ends[1]), pen.lineTo(ends[2], ends[3]), pen.stroke());
    pen.fillStyle = M.css("soft");
    pen.textAlign = "center";
    pen.textBaseline = "bottom";
    draw(x, width, (p) => stroke(p, 0, p, height - 32), (text, p) => pen.fillText(text, p, height - 18));
    pen.textAlign = "left";
    pen.textBaseline = "middle";
    draw(y, height - 32, (p) => stroke(0, p, width, p), (text, p) => pen.fillText(text, 4, p - 7));
    const named = (n) => `PC ${n + 1} (${M.fmt.percent(made.explained[n])} of the variance)`;
    pen.textBaseline = "bottom";
    pen.textAlign = "right";
    pen.fillText(`${named(0)} →`, width - 6, height - 3);
    pen.textAlign = "left";
    pen.fillText(`↑ ${named(1)}`, 4, height - 3);
  }

  function canvasOf(map, made, group, width) {
    const height = Math.round(Math.min(620, Math.max(300, width * 0.72)));
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const canvas = M.h("canvas", { class: "points", tabindex: 0, role: "img", width: Math.round(width * ratio), height: Math.round(height * ratio),
      style: { width: `${width}px`, height: `${height}px` }, "aria-label": `Map of ${map.expert.length} outputs. Use the arrow keys to read single points.` });
    const [across0, up0] = [made.x, made.y].map(seen);
    const room = M.state.kind === "pca" ? 32 : 0; // below, for the axis
    const scale = Math.min((width - 24) / (across0[1] - across0[0] || 1), (height - room - 24) / (up0[1] - up0[0] || 1));
    const [cx, cy] = [d3.mean(across0), d3.mean(up0)];
    const toX = (v) => width / 2 + (v - cx) * scale;
    const toY = (v) => (height - room) / 2 - (v - cy) * scale;
    const px = made.x.map(toX);
    const py = made.y.map(toY);
    const own = (axis) => ({ to: (v) => (v - made.middle[axis]) / made.unit, from: (w) => w * made.unit + made.middle[axis] });
    const [ax, ay] = [own("x"), own("y")];
    const xScale = { at: (v) => toX(ax.to(v)), back: (p) => ax.from(cx + (p - width / 2) / scale) };
    const yScale = { at: (v) => toY(ay.to(v)), back: (p) => ay.from(cy - (p - (height - room) / 2) / scale) };
    const outside = px.filter((x, i) => x < 0 || x > width || py[i] < 0 || py[i] > height - room).length;
    const keys = map[M.state.color];
    const wanted = M.state.find.trim().toLowerCase();
    const alone = focus();
    const lit = (i) => (alone === null || keys[i] === alone) && (!wanted || data.texts[map.token[i]].toLowerCase().includes(wanted));
    const active = d3.range(px.length).filter(lit);
    const faded = alone !== null || wanted !== "";
    const pen = canvas.getContext("2d");
    const radius = px.length > 1500 ? 2.1 : px.length > 400 ? 2.7 : 3.6;
    let cursor = null;
    function paint() {
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, width, height);
      if (room) axes(pen, made, width, height, xScale, yScale);
      pen.save();
      pen.beginPath();
      pen.rect(0, 0, width, height - room);
      pen.clip();
      if (faded) dots(d3.range(px.length), () => M.css("faint"), 0.6, radius * 0.8);
      dots(active, (i) => group.color(keys[i]), 0.8, faded ? radius * 1.25 : radius);
      if (cursor !== null) {
        pen.strokeStyle = M.css("ink");
        pen.lineWidth = 2;
        pen.beginPath();
        pen.arc(px[cursor], py[cursor], radius + 4, 0, 7);
        pen.stroke();
      }
      pen.restore();
    }
    function dots(which, color, opacity, r) {
      pen.globalAlpha = opacity;
      // drawn in a fixed mixed order, so that no group always lies on top
      [...which].sort((a, b) => ((a * 7919) % 10007) - ((b * 7919) % 10007)).forEach((i) => {
        pen.fillStyle = color(i);
        pen.beginPath();
        if (M.state.color === "domain" && domains.length > 8) shapes(pen, keys[i], px[i], py[i], r);
        else pen.arc(px[i], py[i], r, 0, 7);
        pen.fill();
      });
      pen.globalAlpha = 1;
    }
    const tree = d3.quadtree(active, (i) => px[i], (i) => py[i]);
    const tell = (i, x, y) => M.tip.show(x, y, M.h("b", {}, M.tokenShown(data.texts[map.token[i]])),
      M.h("div", {}, `${M.name(M.state.layer, map.expert[i])}, weight ${map.weight[i] === null ? "–" : M.fmt.three(map.weight[i] / 1000)}`),
      M.h("div", {}, domains[map.domain[i]]));
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const i = tree.find(event.clientX - box.left, event.clientY - box.top, 14);
      if (i === undefined) M.tip.hide();
      else tell(i, event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => M.tip.hide());
    const across = [...active].sort((a, b) => px[a] - px[b]);
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -25, ArrowDown: 25 }[event.key];
      if (!by || !across.length) return;
      event.preventDefault();
      const at = cursor === null ? -1 : across.indexOf(cursor);
      cursor = across[at < 0 ? 0 : Math.max(0, Math.min(across.length - 1, at + by))];
      paint();
      const box = canvas.getBoundingClientRect();
      tell(cursor, box.left + px[cursor], box.top + py[cursor]);
    });
    canvas.addEventListener("blur", () => {
      cursor = null;
      M.tip.hide();
      paint();
    });
    paint();
    canvas.dataset.marks = String(active.length);
    return { canvas, active: active.length, outside };
  }

  function legend(group) {
    const most = 120;
    const keys = group.keys.slice(0, M.state.color === "token" ? 40 : most);
    const buttons = keys.map((key) => M.h("button", { type: "button", class: "chip", "aria-pressed": String(focus() === key),
      onclick: () => M.set({ focus: focus() === key ? null : { by: M.state.color, layer: M.state.layer, key } }) },
    M.state.color === "domain" ? M.domainMark(key) : M.h("span", { class: "swatch", style: { background: group.color(key) } }), M.h("span", {}, M.state.color === "expert" ? group.name(key) : `${M.shorten(group.name(key), 28)} ${group.counts.get(key)}`)));
    const rest = group.keys.length - keys.length;
    return [M.h("div", { class: "keys-list", role: "group", "aria-label": "Show the points of one name alone" }, buttons),
      rest > 0 ? M.h("p", { class: "small" }, `${M.fmt.count(rest)} more ${M.state.color === "token" ? "tokens, grey" : "names"}; find them by their text.`) : null];
  }

  function draw() {
    const map = data.maps[M.state.layer];
    const number = data.layers[M.state.layer].layer;
    if (!map || !map.kinds[M.state.kind]) {
      M.title("map", `Layer ${number}`);
      M.fill(M.id("plot-map"), M.absent("Too few outputs were sampled in this layer to draw a map."));
      M.asTable("map", [], () => []);
      return;
    }
    const made = map.kinds[M.state.kind];
    const group = groups(map);
    say(M.state.kind, map);
    const { canvas, active, outside } = canvasOf(map, made, group, M.width("map"));
    M.fill(M.id("plot-map"), canvas,
      M.h("p", { class: "small" }, `${M.fmt.count(active)} of ${M.fmt.count(map.expert.length)} points${outside ? `, ${M.fmt.count(outside)} outside this view` : ""}. ${M.state.kind === "pca" ? "One scale for both axes." : "The axes of UMAP have no meaning."}`), legend(group));
    M.asTable("map", [
      { key: "label", label: "same", name: true }, { key: "space", label: "nearest points in", name: true }, { key: "share", label: "share", format: M.fmt.percent },
      { key: "interval", label: "95 %", name: true }, { key: "chance", label: "chance", format: M.fmt.percent }, { key: "points", label: "points", format: M.fmt.count },
    ], () => (made.neighbours || []).map((f) => ({ ...f, space: f.space === "outputs" ? "all dimensions" : `the ${KINDS[f.space]} map`, interval: M.range(f.ci_low, f.ci_high, M.fmt.percent) || "–" })));
  }

  M.section("map", ["layer", "kind", "color", "view", "focus", "find"], draw, () => {
    const find = M.h("input", { type: "search", placeholder: "find a token", "aria-label": "Show only tokens that contain this", oninput: () => M.set({ find: find.value }) });
    M.id("controls-map").append(
      M.layerControl(),
      ...(kinds.length > 1 ? [M.choice("Map", "kind", kinds.map((k) => ({ value: k, label: KINDS[k] })))] : []),
      M.choice("Colour", "color", ["expert", "domain", "token"].map((v) => ({ value: v, label: v }))),
      M.choice("View", "view", [{ value: 0.05, label: "middle 90 %" }, { value: 0.01, label: "middle 98 %" }, { value: 0, label: "all" }]),
      M.h("div", { class: "control" }, find));
  });
})();
