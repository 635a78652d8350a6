
"use strict";
(() => {
  const form = document.getElementById("filters");
  const text = document.getElementById("text");
  const host = document.getElementById("host");
  const boxes = [...form.querySelectorAll("input[name=state]")];
  const checks = [...document.querySelectorAll("details.check")];
  const tiles = new Map([...document.querySelectorAll(".tile")].map((tile) => [tile.dataset.check, tile]));
  const rows = [...document.querySelectorAll(".matrix tbody tr, .host")];

  function matches(entry, words, states) {
    return states.has(entry.dataset.state) && (!host.value || entry.dataset.host === host.value) &&
      words.every((word) => entry.dataset.text.includes(word));
  }

  function apply() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const states = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
    const left = new Set();
    let shown = 0;
    for (const check of checks) {
      const on = matches(check, words, states);
      check.hidden = !on;
      tiles.get(check.id.slice(1)).classList.toggle("off", !on);
      if (on) {
        shown += 1;
        left.add(check.dataset.host);
      }
    }
    for (const row of rows) {
      // A host that did not answer has no checks to be found by.
      row.hidden = !(row.dataset.state ? matches(row, words, states) : left.has(row.dataset.host));
      // Who looks for something wants to see it.
      if (shown < checks.length && row.matches("details")) {
        row.open = true;
      }
    }
    document.getElementById("shown").textContent = `${shown} of ${checks.length} checks`;
    document.getElementById("nothing").hidden = shown > 0 || checks.length === 0;
  }

  function open() {
    const target = /^#c\d+$/.test(location.hash) && document.getElementById(location.hash.slice(1));
    if (target) {
      target.open = target.parentElement.open = true;
      target.scrollIntoView();
    }
  }

  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", open);
  apply();
  open();
})();
