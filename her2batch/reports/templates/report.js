"use strict";
// Lists that sort and filter, overlays that fade; nothing is fetched, whatever is shown is put in as text.
const shared = JSON.parse(document.getElementById("shared").textContent);
const make = (tag, name, text) => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
};

function chip(value) {
  const out = make("span", "chip");
  const swatch = make("i", "swatch");
  swatch.style.background = `var(--${shared.hues[value] || "bar"})`;
  out.append(swatch, String(value));
  return out;
}

function slide(id) {
  const href = shared.links[id];
  const out = make(href ? "a" : "span", "slide");
  if (href) out.href = href;
  const source = shared.pictures[id];
  if (source) {
    const picture = make("img");
    picture.src = source;
    picture.alt = "";
    picture.loading = "lazy";
    out.append(picture);
  }
  out.append(make("span", "", id));
  return out;
}

const cells = {
  slide: (value) => slide(value),
  class: (value) => chip(value),
  share: (value) => (100 * value).toFixed(1) + " %",
  number: (value) => (Number.isInteger(value) ? value.toLocaleString("en") : value.toFixed(2)),
  words: (value) => value.join(", "),
  slides: (value) => {
    const out = make("span", "strip");
    for (const [id, said] of value) {
      const one = make("span", "one");
      one.append(slide(id), make("span", "soft", said));
      out.append(one);
    }
    return out;
  },
  text: (value) => String(value),
};

function list(section) {
  const holder = section.querySelector("script.rows");
  if (!holder) return;
  const { page, columns, rows } = JSON.parse(holder.textContent);
  const words = rows.map((row) => JSON.stringify(row).toLowerCase());
  const order = new Intl.Collator("en", { numeric: true });
  const body = section.querySelector("tbody");
  const scroller = section.querySelector(".wide");
  const heads = [...section.querySelectorAll("th")];
  const [back, on] = section.querySelectorAll(".pager button");
  let shown = rows.map((_, k) => k), start = 0, by = -1, up = true;

  function fill(count) {
    body.replaceChildren(...shown.slice(start, start + count).map((k) => {
      const line = make("tr");
      columns.forEach(([, kind], c) => {
        const value = rows[k][c];
        const cell = make("td", "k-" + kind);
        cell.append(value === null || value.length === 0 ? "–" : cells[kind](value));
        line.append(cell);
      });
      return line;
    }));
    const last = Math.min(start + count, shown.length);
    section.querySelector(".where").textContent = shown.length ? `${start + 1}–${last} of ${shown.length}` : "none";
    back.disabled = start === 0;
    on.disabled = last === shown.length;
  }

  function turn(to) {
    start = to;
    fill(page);
    scroller.scrollTop = 0;
  }

  function sort() {
    if (by < 0) return;
    const rank = (a, b) => {
      const [x, y] = [rows[a][by], rows[b][by]];
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      const found = typeof x === "number" ? x - y : order.compare(JSON.stringify(x), JSON.stringify(y));
      return (up ? found : -found) || a - b;
    };
    shown.sort(rank);
  }

  heads.forEach((head, c) => {
    const button = make("button", "sort", head.textContent);
    button.type = "button";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      up = by === c ? !up : true;
      by = c;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      sort();
      turn(0);
    });
  });
  section.querySelector("input").addEventListener("input", (event) => {
    const asked = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = rows.map((_, k) => k).filter((k) => asked.every((one) => words[k].includes(one)));
    sort();
    turn(0);
  });
  back.addEventListener("click", () => turn(Math.max(0, start - page)));
  on.addEventListener("click", () => turn(start + page));
  section.querySelector(".tools").hidden = false;
  turn(0);
}

function viewer(box) {
  const layers = [...box.querySelectorAll("[data-layer]")];
  const opacity = box.querySelector("input[type=range]");
  const show = () => {
    const chosen = box.querySelector("input[type=radio]:checked");
    layers.forEach((one) => one.toggleAttribute("hidden", !chosen || one.dataset.layer !== chosen.value));
    box.querySelectorAll("image[data-layer]").forEach((one) => one.setAttribute("opacity", opacity.value / 100));
  };
  box.addEventListener("input", show);
  box.querySelector(".controls").hidden = false;
  show();
}

document.querySelectorAll(".listing").forEach(list);
document.querySelectorAll(".viewer").forEach(viewer);

// A link into a closed part opens it; paper shows every part.
function open() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let one = target; one; one = one.parentElement) if (one.tagName === "DETAILS") one.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", open);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
open();
