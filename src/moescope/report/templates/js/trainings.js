"use strict";
// Curves of several training runs over each other, a panel for each measure.
(function () {
  const { groups, measures } = M.data;
  const PERCENT = ["dead_share", "dropped_share"];
  const ZERO = ["cv", "dead_share", "max_violation", "dropped_share", "noise_scale"];
  const dashes = [null, "6 3", "2 2"];
  const dash = (group) => dashes[Math.floor(group / 8) % dashes.length];
  const NOTES = {
    loss: "nats per token, running mean", heldout_loss: "nats per token, as the saved model routes", cv: "standard deviation over mean · even: 0",
    load_entropy: "H(load) / log E · even: 1", router_entropy: "H(p) / log E · certain: 0", dead_share: "experts that no token of the step chose",
    max_violation: "busiest expert over the mean, less 1 · even: 0", dropped_share: "assignments beyond the capacity", noise_scale: "standard deviation on the router's logits",
  };
  const half = (rows) => M.half(rows.length, 40);
  const linesOf = (measure) => measure.runs.filter((r) => M.state.shown.includes(r.group)).map((run) => {
    const format = PERCENT.includes(measure.key) ? M.fmt.percent : M.fmt.three;
    const rows = run.step.map((step, i) => ({ step, value: run.value[i] }));
    const smooth = measure.key === "heldout_loss" ? rows : M.smooth(rows, half(rows));
    return { color: M.domainColor(run.group), dash: dash(run.group), width: 1.6, group: run.group,
      rows: smooth.map((r) => ({ ...r, title: `${groups[run.group]}, seed ${run.seed} · step ${M.fmt.count(Math.round(r.step))}\n${measure.label} ${format(r.value)}` })) };
  });
  M.state.shown = d3.range(groups.length);
  M.figure("curves", ["shown"], () => {
    M.title("curves", "Losses and routing by step", M.sub("routing: means of the layers", "lines are smoothed, held-out loss is not"));
    const panels = measures.map((measure) => ({ title: measure.label, note: NOTES[measure.key], chart: (width) => {
      const lines = linesOf(measure);
      return M.stepChart({ width, height: 240, label: `${measure.label} by step`, unit: null, lines, zero: ZERO.includes(measure.key), tick: PERCENT.includes(measure.key) ? M.tickPercent : M.fmt.any,
        dots: lines.filter((l) => l.rows.length < 3), tips: lines.flatMap((l) => l.rows) });
    } }));
    M.fill(M.id("plot-curves"), groups.length > 8 && M.keys(...M.state.shown.map((g) => M.key(M.domainColor(g), groups[g], { borderTopStyle: dash(g) ? "dashed" : "solid" }))) || null, M.panels("curves", panels, 400));
    M.asTable("curves", [
      { key: "run", label: "run", text: true, format: M.fmt.text }, { key: "seed", label: "seed" }, { key: "measure", label: "measure", text: true, format: M.fmt.text },
      { key: "step", label: "step", format: (v) => M.fmt.count(Math.round(v)) }, { key: "value", label: "value", format: M.fmt.any },
    ], () => measures.flatMap((m) => m.runs.flatMap((run) => run.step.map((step, i) => ({ run: groups[run.group], seed: run.seed, measure: m.label, step, value: run.value[i] })))));
  }, () => {
    const chips = groups.map((name, g) => M.h("button", { type: "button", class: "chip", onclick: () => {
      const next = M.state.shown.includes(g) ? M.state.shown.filter((i) => i !== g) : [...M.state.shown, g].sort(d3.ascending);
      if (next.length) M.set({ shown: next });
    } }, M.h("span", { class: "swatch", style: { background: `var(--d${g % 8})` } }), M.h("span", {}, name)));
    const update = () => chips.forEach((c, g) => c.setAttribute("aria-pressed", String(M.state.shown.includes(g))));
    M.watch("shown", update);
    update();
    M.id("controls-curves").append(M.h("div", { class: "control", role: "group", "aria-label": "Runs" }, M.h("span", { class: "name" }, "Runs"), M.h("span", { class: "segments" }, chips)), ...M.axisControls());
  });
})();
