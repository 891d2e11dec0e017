"use strict";
// A map of cells on a canvas: thousands of cells are cheap, and arrow keys read them one by one.
(function () {
  // spec: rows, cols, width, rowLabel(i), colLabel(j), color(i, j) or null, mark(i, j), describe(i, j),
  //       yTitle, xTitle, label, square
  M.heatmap = function (spec) {
    const left = 44;
    const top = 4;
    const bottom = 34;
    const widest = spec.cols <= 16 ? (spec.square ? 26 : 46) : spec.square ? 13 : 26;
    const cw = Math.max(spec.square ? 5 : 3.4, Math.min(widest, (spec.width - left - 6) / spec.cols));
    const ch = spec.square ? cw : spec.rows <= 8 ? 22 : spec.rows <= 20 ? 15 : spec.rows <= 36 ? 11 : 8;
    const width = Math.ceil(left + cw * spec.cols + 6);
    const height = Math.ceil(top + ch * spec.rows + bottom);
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const canvas = M.h("canvas", {
      class: "map", tabindex: 0, role: "img", width: Math.round(width * ratio), height: Math.round(height * ratio),
      style: { width: `${width}px`, height: `${height}px` }, "aria-label": `${spec.label}. Use the arrow keys to read single cells.`,
    });
    const pen = canvas.getContext("2d");
    let cursor = null;
    function draw() {
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.clearRect(0, 0, width, height);
      cells(pen, spec, left, top, cw, ch);
      M.mapAxes(pen, spec, left, top, cw, ch);
      if (cursor) {
        pen.strokeStyle = M.css("ink");
        pen.lineWidth = 2;
        pen.strokeRect(left + cursor[1] * cw, top + cursor[0] * ch, cw, ch);
      }
    }
    function tell(row, column, x, y) {
      const lines = spec.describe(row, column);
      if (!lines) return M.tip.hide();
      M.tip.show(x, y, lines.map((line, i) => M.h("div", {}, i === 0 ? M.h("b", {}, line) : line)));
      return undefined;
    }
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const column = Math.floor((event.clientX - box.left - left) / cw);
      const row = Math.floor((event.clientY - box.top - top) / ch);
      if (row < 0 || column < 0 || row >= spec.rows || column >= spec.cols) M.tip.hide();
      else tell(row, column, event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => M.tip.hide());
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      const clamp = (v, size) => Math.max(0, Math.min(size - 1, v));
      cursor = cursor ? [clamp(cursor[0] + move[0], spec.rows), clamp(cursor[1] + move[1], spec.cols)] : [0, 0];
      draw();
      const box = canvas.getBoundingClientRect();
      tell(cursor[0], cursor[1], box.left + left + cursor[1] * cw, box.top + top + cursor[0] * ch);
    });
    canvas.addEventListener("blur", () => {
      cursor = null;
      M.tip.hide();
      draw();
    });
    draw();
    canvas.dataset.marks = String(spec.rows * spec.cols);
    return M.h("div", { class: "scroll" }, canvas);
  };

  function cells(pen, spec, left, top, cw, ch) {
    const gap = cw >= 7 ? 1 : 0;
    for (let i = 0; i < spec.rows; i++) {
      for (let j = 0; j < spec.cols; j++) {
        const color = spec.color(i, j);
        if (color === undefined) continue;
        pen.fillStyle = color === null ? M.css("empty") : color;
        pen.fillRect(left + j * cw, top + i * ch, cw - gap, ch - (ch >= 9 ? 1 : 0));
        if (spec.mark && spec.mark(i, j)) {
          const r = Math.max(1.6, Math.min(3, cw / 5, ch / 4));
          pen.beginPath();
          pen.arc(left + j * cw + (cw - gap) / 2, top + i * ch + ch / 2, r, 0, 7);
          pen.fillStyle = M.css("ink");
          pen.fill();
          pen.strokeStyle = M.css("panel");
          pen.lineWidth = 1;
          pen.stroke();
        }
      }
    }
  }

  // Numbers of rows and columns, and the names of both axes.
  M.mapAxes = function (pen, spec, left, top, cw, ch) {
    pen.fillStyle = M.css("soft");
    pen.font = `11px ${M.css("sans")}`;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const every = M.step(spec.rows, ch, 12);
    for (let i = 0; i < spec.rows; i += every) pen.fillText(spec.rowLabel(i), left - 6, top + i * ch + ch / 2);
    pen.textAlign = "center";
    const step = M.step(spec.cols, cw, 8 * spec.colLabel(spec.cols - 1).length + 6);
    const end = top + spec.rows * ch;
    for (let j = 0; j < spec.cols; j += step) pen.fillText(spec.colLabel(j), left + j * cw + cw / 2, end + 9);
    pen.textAlign = "left";
    pen.fillText(spec.xTitle, left, end + 25);
    pen.save();
    pen.translate(8, top + (spec.rows * ch) / 2);
    pen.rotate(-Math.PI / 2);
    pen.textAlign = "center";
    pen.fillText(spec.yTitle, 0, 0);
    pen.restore();
  };

  // Every how many labels fit, in round steps.
  M.step = function (count, size, room) {
    const need = Math.ceil(room / size);
    return [1, 2, 4, 5, 8, 10, 16, 20, 32, 50, 64, 100].find((s) => s >= need) || count;
  };
})();
