// Opens an expert by link, walks by keys, searches, presses every button and choice.
M.start(() => {
const told = document.documentElement.dataset;
const key = (e, name) => e.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
const shown = () => document.getElementById("panel-name").firstChild.textContent;
const count = () => document.querySelector("#plot-list .count span").textContent;
const search = document.querySelector("#controls-filter input[type=search]");
const type = (text) => {
  search.value = text;
  search.dispatchEvent(new Event("input"));
};

history.replaceState(null, "", "#L2E3");
window.dispatchEvent(new HashChangeEvent("hashchange"));
told.linked = shown();
const map = document.querySelector("canvas.experts");
key(map, "ArrowRight");
told.arrowed = shown();
key(document.querySelector("canvas.experts"), "ArrowDown");
told.down = shown();
key(document.body, "ArrowRight");
told.walked = shown();
type("l1e6");
told.searched = count();
type("no token is called like this");
told.nothing = count();
type("");
for (const b of document.querySelectorAll("#controls-map button")) b.click();
for (const s of document.querySelectorAll("#controls-filter select, #plot-list select")) {
  for (let i = 0; i < s.options.length; i++) {
    s.selectedIndex = i;
    s.dispatchEvent(new Event("change"));
  }
  s.selectedIndex = 0;
  s.dispatchEvent(new Event("change"));
}
for (const b of document.querySelectorAll("#tools button")) b.click();
const box = document.querySelector("canvas.experts").getBoundingClientRect();
const rows = 4;
const at = { clientX: box.left + 44 + 3, clientY: box.top + 4 + 26 + 5, bubbles: true };
document.querySelector("canvas.experts").dispatchEvent(new PointerEvent("pointermove", at));
document.querySelector("canvas.experts").dispatchEvent(new MouseEvent("click", at));
told.clicked = shown();
for (const b of document.querySelectorAll(".profile-head button")) b.click();
for (const a of document.querySelectorAll(".partner-rows a")) {
  if (!document.querySelector(`#plot-list a[href="${a.getAttribute("href")}"]`)) throw new Error("a partner leads nowhere");
}
told.used = "yes";
});
