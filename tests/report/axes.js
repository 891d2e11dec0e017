// Finds words of a figure's axes that repeat or touch, in every figure that is drawn: "figure: words | words".
(function () {
  const faults = [];
  for (const svg of document.querySelectorAll(".plot svg")) {
    const figure = svg.closest(".fig").id;
    const words = [...svg.querySelectorAll('[aria-label$="tick label"] text, [aria-label$="axis label"] text, [aria-label$="-axis label"]')]
      .filter((e) => e.textContent.trim() && e.tagName === "text");
    const boxes = words.map((e) => [e.textContent, e.getBoundingClientRect()]);
    boxes.forEach(([a, p], i) => boxes.slice(i + 1).forEach(([b, q]) => {
      if (p.left < q.right - 0.5 && q.left < p.right - 0.5 && p.top < q.bottom - 2 && q.top < p.bottom - 2) faults.push(`${figure}: ${a} | ${b} touch`);
    }));
    const ticks = d3.groups([...svg.querySelectorAll('[aria-label$="tick label"] text')].filter((e) => e.textContent), (e) => e.parentNode);
    for (const [, axis] of ticks) {
      const texts = axis.map((e) => e.textContent);
      if (new Set(texts).size < texts.length) faults.push(`${figure}: ${texts.join(" ")} repeat`);
    }
  }
  for (const scale of document.querySelectorAll(".plot .ticks")) {
    const boxes = [...scale.children].map((e) => [e.textContent, e.getBoundingClientRect()]);
    d3.pairs(boxes, ([a, p], [b, q]) => p.right > q.left - 2 && faults.push(`${scale.closest(".fig").id}: ${a} | ${b} touch`));
  }
  const told = document.documentElement.dataset;
  told.faults = faults.join("; ");
  told.axes = String(document.querySelectorAll('.plot [aria-label$="tick label"]').length);
})();
