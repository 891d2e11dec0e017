"use strict";
// Commands that can be copied, and links from an expert's name to its profile.
(function () {
  // Without the right to write to the clipboard, the command is selected instead.
  async function copy(pre, button) {
    try {
      await navigator.clipboard.writeText(pre.textContent);
      button.textContent = "copied";
    } catch {
      getSelection().selectAllChildren(pre.querySelector("code"));
      button.textContent = "selected";
    }
    setTimeout(() => (button.textContent = "copy"), 1500);
  }
  // Lines end between words: "--plan" is not cut after its hyphens.
  const words = (text) => text.split(/(\s+)/).map((part) => (part.trim() ? M.h("span", {}, part) : part));
  function withButton(pre) {
    const code = pre.querySelector("code");
    M.fill(code, words(code.textContent));
    const button = M.h("button", { type: "button", class: "copy", "aria-label": "Copy the command", onclick: () => copy(pre, button) }, "copy");
    const frame = M.h("div", { class: "command-frame" });
    pre.replaceWith(frame);
    frame.append(pre, button);
    return frame;
  }
  M.command = (text) => withButton(M.h("pre", { class: "command", tabindex: 0 }, M.h("code", {}, text)));
  document.querySelectorAll("pre.command").forEach(withButton);

  // Where the folder of this page has profiles, names of experts lead to them.
  const profiles = document.querySelector('#beside [data-page="profiles"]');
  M.profileOf = (name) => (profiles ? `${profiles.getAttribute("href")}#${name}` : null);
  M.expertColumn = (key) => ({ key, label: "expert", name: true, render: (r) => M.expert(r[key]) });
  M.expert = (name, shown = name) => (profiles ? M.h("a", { class: "expert", href: M.profileOf(name), title: `the profile of ${name}` }, shown) : shown);
  document.querySelectorAll("td.expert, th.expert").forEach((cell) => M.fill(cell, M.expert(cell.textContent)));
})();
