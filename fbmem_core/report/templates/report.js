"use strict";
(function () {
  const cards = Array.from(document.querySelectorAll(".card"));
  const list = document.getElementById("cards");
  const status = document.getElementById("shown");
  const field = (name) => document.getElementById("filter-" + name);
  const names = ["label", "kind", "reference", "near", "changed", "review", "sort", "text"];

  function matches(card) {
    const facts = card.dataset;
    const text = field("text").value.trim().toLowerCase();
    return (!field("label").value || facts.label === field("label").value)
      && (!field("kind").value || facts.kind === field("kind").value)
      && (!field("reference").value || facts.references.split("\n").includes(field("reference").value))
      && (!field("near").checked || facts.near === "true")
      && (!field("changed").checked || facts.change !== "")
      && (!field("review").checked || facts.reviewed === "false")
      && (!text || facts.text.toLowerCase().includes(text));
  }

  function compare(one, other) {
    const by = field("sort").value;
    if (by === "prompt") { return one.dataset.prompt.localeCompare(other.dataset.prompt); }
    return Number(other.dataset[by]) - Number(one.dataset[by]);
  }

  function update() {
    let shown = 0;
    cards.forEach((card) => { card.hidden = !matches(card); shown += card.hidden ? 0 : 1; });
    cards.slice().sort(compare).forEach((card) => list.appendChild(card));
    status.textContent = shown + " of " + cards.length + " findings are shown";
  }

  function openNamed() {
    const card = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (card && card.matches("details")) { card.hidden = false; card.open = true; card.scrollIntoView(); }
  }

  function build(card) {
    const place = card.querySelector(".compare");
    if (!place || place.dataset.built) { return; }
    place.dataset.built = "true";
    const images = card.querySelectorAll(".pictures img");
    if (images.length < 2 || !card.dataset.pair) { place.remove(); return; }
    const moved = card.querySelector(".moved img");  // the reference as it was compared, where it had to be moved
    const below = images[0].cloneNode(); const above = (moved || images[1]).cloneNode();
    above.className = "over"; above.alt = "reference, laid over the generated image";
    place.append(below, above);
    const slider = card.querySelector("input[type=range]");
    const slide = () => { above.style.clipPath = "inset(0 0 0 " + (100 - slider.value) + "%)"; };
    slider.addEventListener("input", slide); slide();
    const blink = card.querySelector(".blink");
    let timer = null;
    blink.addEventListener("click", () => {
      const on = blink.getAttribute("aria-pressed") !== "true";
      blink.setAttribute("aria-pressed", String(on));
      clearInterval(timer); above.style.visibility = "visible";
      above.style.clipPath = on ? "none" : above.style.clipPath;
      if (on) { timer = setInterval(() => { above.style.visibility = above.style.visibility === "hidden" ? "visible" : "hidden"; }, 600); } else { slide(); }
    });
  }

  function copy(button) {
    const text = button.dataset.copy;
    const done = () => { const word = button.textContent; button.textContent = "copied"; setTimeout(() => { button.textContent = word; }, 1200); };
    if (navigator.clipboard) { navigator.clipboard.writeText(text).then(done, () => {}); }
  }

  names.forEach((name) => { const input = field(name); if (input) { input.addEventListener("input", update); } });
  cards.forEach((card) => { card.addEventListener("toggle", () => { if (card.open) { build(card); } }); if (card.open) { build(card); } });
  document.addEventListener("click", (event) => { const button = event.target.closest("[data-copy]"); if (button) { copy(button); } });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { return; }
    const visible = Array.from(document.querySelectorAll(".card")).filter((card) => !card.hidden);
    const at = visible.findIndex((card) => card.contains(document.activeElement));
    if (event.key === "j" || event.key === "k") {
      const next = visible[Math.max(0, Math.min(visible.length - 1, event.key === "j" ? at + 1 : at - 1))];
      if (next) { next.querySelector("summary").focus(); next.scrollIntoView({ block: "nearest" }); }
    } else if (event.key === "b" && at >= 0) { const blink = visible[at].querySelector(".blink"); if (blink && visible[at].open) { blink.click(); } }
  });
  const opened = [];  // for print alone
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details:not([open])").forEach((part) => { part.open = true; opened.push(part); });
    document.querySelectorAll("img").forEach((image) => { image.loading = "eager"; });
  });
  window.addEventListener("afterprint", () => { opened.splice(0).forEach((part) => { part.open = false; }); });
  window.addEventListener("hashchange", openNamed);
  if (list) { update(); openNamed(); }
})();
