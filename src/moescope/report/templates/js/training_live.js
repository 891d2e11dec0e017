"use strict";
// A page that reloads itself and is found again as it was left: controls, open tables, place.
(function () {
  const place = `moescope-training:${location.pathname}`;
  const kept = [];

  function before() {
    try {
      const found = JSON.parse(sessionStorage.getItem(place));
      return found && typeof found === "object" ? found : {};
    } catch {
      return {}; // storage can be closed for files; the page then starts afresh each time
    }
  }
  const left = before();
  const chosen = left.state && typeof left.state === "object" ? left.state : {};

  // A key of the state that outlives a reload. allowed(value) keeps out what is not a choice any more.
  M.keep = function (key, first, allowed) {
    kept.push(key);
    M.state[key] = chosen[key] !== undefined && allowed(chosen[key]) ? chosen[key] : first;
  };
  M.save = function () {
    const opened = [...document.querySelectorAll("details[open]")].map((d) => d.id).filter(Boolean);
    try {
      sessionStorage.setItem(place, JSON.stringify({
        state: Object.fromEntries(kept.map((k) => [k, M.state[k]])), opened, x: window.scrollX, y: window.scrollY,
      }));
    } catch {
      // full or closed: nothing is kept
    }
  };
  window.addEventListener("pagehide", M.save);

  // Open tables are opened before anything is drawn, so that the page has its height again.
  if (Array.isArray(left.opened)) left.opened.forEach((id) => {
    const found = M.id(String(id));
    if (found && found.tagName === "DETAILS") found.open = true;
  });
  function scrollBack() {
    if (!Number.isFinite(left.y)) return;
    window.scrollTo({ left: left.x || 0, top: left.y, behavior: "instant" });
  }
  M.drawn.push(() => {
    scrollBack();
    // a browser that goes to the address's own anchor does so after this
    window.addEventListener("load", () => setTimeout(scrollBack, 0));
  });
  try {
    history.scrollRestoration = "manual";
  } catch {
    // the browser's own way, then
  }

  const seconds = M.data.refresh;
  M.section("reload", [], () => {}, () => {
    if (!seconds) return;
    M.keep("paused", false, (v) => typeof v === "boolean");
    const CALM = 1500; // nobody is interrupted: a reload waits until hands are off for so long
    let touched = -CALM;
    ["pointermove", "pointerdown", "keydown", "wheel"].forEach((kind) => window.addEventListener(kind, () => {
      touched = performance.now();
    }, { passive: true }));
    const when = M.h("span", { class: "when" });
    const button = M.h("button", { type: "button", onclick: () => {
      M.state.paused = !M.state.paused;
      remaining = seconds;
      tell();
    } });
    let remaining = seconds;
    function tell() {
      button.textContent = M.state.paused ? "go on" : "pause";
      when.textContent = M.state.paused ? "not looking again" : `looks again in ${Math.max(0, remaining)} s`;
    }
    setInterval(() => {
      if (M.state.paused) return;
      remaining -= 1;
      tell();
      if (remaining > 0 || performance.now() - touched < CALM) return;
      M.save();
      location.reload();
    }, 1000);
    tell();
    M.id("tools").append(M.h("div", { class: "control", id: "reload" }, when, button));
  });
})();
