"use strict";
// Tables that sort and filter, and overlays with adjustable opacity. Nothing is fetched; all values are inserted as text.
const shared = JSON.parse(document.getElementById("shared").textContent);
const element = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};

function classChip(value) {
  const chip = element("span", "chip");
  const colour = shared.classColours[value]; // a number has none
  if (colour || !Number.isFinite(Number(value))) {
    const swatch = element("i", "swatch");
    swatch.style.background = `var(--${colour || "bar"})`;
    chip.append(swatch);
  }
  chip.append(String(value));
  return chip;
}

function slideLabel(id) {
  const href = shared.links[id];
  const label = element(href ? "a" : "span", "slide");
  if (href) label.href = href;
  const source = shared.pictures[id];
  if (source) {
    const image = element("img");
    image.src = source;
    image.alt = "";
    label.append(image);
  }
  label.append(element("span", "", id));
  return label;
}

const cellContents = {
  slide: (value) => slideLabel(value),
  class: (value) => classChip(value),
  share: (value) => (100 * value).toFixed(1) + " %",
  number: (value) => (Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(2)),
  words: (value) => value.join(", "),
  result: ([name, meaning]) => {
    const result = element("span", "result-cell");
    if (name) result.append(classChip(name));
    if (meaning) result.append(element("span", "soft", meaning));
    return result;
  },
  reasons: (value) => {
    const list = element("ul", "reasons");
    value.forEach(([words, asks], k) => list.append(element("li", asks && k === 0 ? "weightiest" : "", words)));
    return list;
  },
  slides: (value) => {
    const strip = element("span", "strip");
    for (const [id, caption] of value) {
      const entry = element("span", "one");
      entry.append(slideLabel(id), element("span", "soft", caption));
      strip.append(entry);
    }
    return strip;
  },
  text: (value) => String(value),
};

function setUpTable(section) {
  const rowData = section.querySelector("script.rows");
  if (!rowData) return;
  const { page, columns, rows, filters } = JSON.parse(rowData.textContent);
  const searchTexts = rows.map((row) => JSON.stringify(row).toLowerCase());
  const collator = new Intl.Collator("en", { numeric: true });
  const body = section.querySelector("tbody");
  const scroller = section.querySelector(".wide");
  const headers = [...section.querySelectorAll("th")];
  const [previous, next] = section.querySelectorAll(".pager button");
  let shown = rows.map((_, k) => k), start = 0, sortColumn = -1, ascending = true;

  function fillRows(count) {
    body.replaceChildren(...shown.slice(start, start + count).map((k) => {
      const row = element("tr");
      columns.forEach(([label, kind], c) => {
        const value = rows[k][c];
        const cell = element("td", "k-" + kind);
        cell.dataset.label = label;
        cell.append(value === null || value.length === 0 ? "–" : cellContents[kind](value));
        row.append(cell);
      });
      return row;
    }));
    const last = Math.min(start + count, shown.length);
    section.querySelector(".where").textContent = shown.length ? `${start + 1}–${last} of ${shown.length}` : "none";
    previous.disabled = start === 0;
    next.disabled = last === shown.length;
  }

  function showFrom(first) {
    start = first;
    fillRows(page);
    scroller.scrollTop = 0;
  }

  function sort() {
    if (sortColumn < 0) return;
    const compare = (a, b) => {
      const [x, y] = [rows[a][sortColumn], rows[b][sortColumn]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      const result = typeof x === "number" ? x - y : collator.compare(JSON.stringify(x), JSON.stringify(y));
      return (ascending ? result : -result) || a - b;
    };
    shown.sort(compare);
  }

  headers.forEach((header, c) => {
    const button = element("button", "sort", header.textContent);
    button.type = "button";
    header.replaceChildren(button);
    button.addEventListener("click", () => {
      ascending = sortColumn === c ? !ascending : true;
      sortColumn = c;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      sort();
      showFrom(0);
    });
  });
  section.querySelector(".tools").addEventListener("input", () => {
    const terms = section.querySelector("input[type=search]").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = section.querySelector(".filters input:checked");
    const listed = chosen && chosen.value ? filters[chosen.value][1] : rows.map((_, k) => k);
    shown = listed.filter((k) => terms.every((term) => searchTexts[k].includes(term)));
    sort();
    showFrom(0);
  });
  previous.addEventListener("click", () => showFrom(Math.max(0, start - page)));
  next.addEventListener("click", () => showFrom(start + page));
  section.querySelector(".tools").hidden = false;
  showFrom(0);
}

function setUpViewer(box) {
  const layers = [...box.querySelectorAll("[data-layer]")];
  const opacity = box.querySelector("input[type=range]");
  const update = () => {
    const selected = box.querySelector("input[type=radio]:checked");
    layers.forEach((layer) => layer.toggleAttribute("hidden", !selected || layer.dataset.layer !== selected.value));
    box.querySelectorAll("image[data-layer]").forEach((image) => image.setAttribute("opacity", opacity.value / 100));
  };
  box.addEventListener("input", update);
  box.querySelector(".controls").hidden = false;
  update();
}

document.querySelectorAll(".listing").forEach(setUpTable);
document.querySelectorAll(".viewer").forEach(setUpViewer);

// A report that her2batch serve shows links each slide to the viewer of the same server. Tables are not served.
if (location.protocol.startsWith("http")) {
  document.querySelectorAll("a.to-viewer").forEach((link) => { link.hidden = false; });
  document.querySelectorAll("a.src[href]").forEach((link) => { link.removeAttribute("href"); });
}

// A link to an element inside closed details opens them. All details are open in print.
function openTarget() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => { details.open = true; }));
openTarget();
