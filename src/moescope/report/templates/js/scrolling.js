"use strict";
// What is wider than its place shows that there is more: its edge fades until the end is reached.
(function () {
  function mark(host) {
    const more = {
      left: host.scrollLeft > 2, right: host.scrollWidth - host.clientWidth - host.scrollLeft > 2,
      below: host.scrollHeight - host.clientHeight - host.scrollTop > 2,
    };
    host.dataset.more = Object.keys(more).filter((side) => more[side]).join(" ");
  }
  const all = () => document.querySelectorAll(".scroll, .table-wrap, pre.command, .keys-list, .found ol").forEach(mark);
  let waiting = 0;
  const soon = () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(all);
  };
  document.addEventListener("scroll", (event) => event.target instanceof Element && "more" in event.target.dataset && mark(event.target), { capture: true, passive: true });
  document.addEventListener("toggle", soon, true);
  window.addEventListener("resize", soon);
  new MutationObserver(soon).observe(M.id("main"), { childList: true, subtree: true });
})();
