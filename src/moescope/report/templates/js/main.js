"use strict";
// Contents, drawing, and drawing again when the width changes.
M.start(function () {
  const links = [...document.querySelectorAll("main > section")].map((section) =>
    M.h("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
  M.fill(M.id("toc"), links);
  M.setup();
  M.id("tools").append(M.themeControl());
  M.redraw();

  let width = document.documentElement.clientWidth;
  let waiting = 0;
  window.addEventListener("resize", () => {
    if (document.documentElement.clientWidth === width) return;
    width = document.documentElement.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(M.redraw, 60);
  });
  if ("IntersectionObserver" in window) {
    const seen = new IntersectionObserver((entries) => entries.forEach((e) => {
      if (!e.isIntersecting) return;
      links.forEach((a) => (a.hash === `#${e.target.id}` ? a.setAttribute("aria-current", "true") : a.removeAttribute("aria-current")));
    }), { rootMargin: "-10% 0px -75% 0px" });
    document.querySelectorAll("main > section").forEach((s) => seen.observe(s));
  }
  M.drawn.forEach((after) => after());
  document.documentElement.dataset.ready = "yes";
});
