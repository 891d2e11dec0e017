// Presses every button, opens every table, walks through maps and tokens, and turns the lights off.
const key = (e, name) => e.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
const told = document.documentElement.dataset;
document.querySelectorAll("details").forEach((d) => {
  d.open = true;
  d.dispatchEvent(new Event("toggle"));
});
for (const host of document.querySelectorAll(".controls")) {
  for (const b of host.querySelectorAll("button")) b.click();
  for (const s of host.querySelectorAll("select")) {
    for (let i = 0; i < Math.min(4, s.options.length); i++) {
      s.selectedIndex = i;
      s.dispatchEvent(new Event("change"));
    }
  }
  for (const r of host.querySelectorAll("input[type=range]")) {
    r.value = r.max;
    r.dispatchEvent(new Event("input"));
  }
  for (const t of host.querySelectorAll("input[type=search]")) {
    t.value = "a";
    t.dispatchEvent(new Event("input"));
  }
}
document.querySelectorAll("thead button").forEach((b) => b.click());
for (const c of document.querySelectorAll("canvas.map")) {
  c.focus();
  for (const k of ["ArrowRight", "ArrowDown", "ArrowRight", "ArrowLeft"]) key(c, k);
  told.cell = document.getElementById("tip").textContent || told.cell;
}
const token = document.querySelector(".tok");
if (token) {
  token.focus();
  told.spoken = document.getElementById("tip").textContent;
  key(token, "ArrowRight");
  told.moved = String(document.activeElement !== token);
}
for (const b of document.querySelectorAll("#tools button")) b.click();
told.used = "yes";
