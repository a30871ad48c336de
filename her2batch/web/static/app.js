// Routes between the two views (worklist, one slide) and shows the worklist.

import { age, cell, classChip, element, fetchApi, showCohort, VERDICT_WORDS } from "./common.js";
import { showSlide } from "./slide.js";

const COLUMNS = [
  ["slide_id", "Slide"], ["result", "Result"], ["first", "Reasons"], ["patient_id", "Case"], [null, "Laboratory"],
  ["score", "Score"], ["finished", "Age"], ["verdict", "Verdict"],
];
const VIEWS = [
  ["", "All"], ["state=review", "To review", "review"], ["needs_ish=true", "ISH needed", "needs_ish"],
  ["kind=not-scorable", "Not scorable", "not_scorable"], ["state=decided", "Decided", "decided"], ["state=clear", "Clear", "clear"], ["state=other", "Marker not scored", "other"],
];
const PAGE = 100;
const main = document.getElementById("main");
let query = { q: "", view: "", result: "", kind: "", status: "", sort: "first", descending: false, offset: 0 };
let closeView = () => {};
let worklist = null; // ids of the slides in the order of the list

function showTemplate(name) {
  main.replaceChildren(document.getElementById(name).content.cloneNode(true));
}

function parameters(more) {
  const { view, ...others } = { ...query, ...more };
  return new URLSearchParams([...Object.entries(others).filter(([, value]) => value !== ""), ...new URLSearchParams(view)]);
}

async function showList() {
  document.title = "Slides · her2batch";
  showTemplate("list");
  const form = document.getElementById("filter");
  form.querySelector("#views").append(...VIEWS.map(([value, label, state]) => {
    const input = element("input", { type: "radio", name: "view", value });
    input.checked = value === query.view;
    return element("label", {}, input, ` ${label} `, state ? element("b", { "data-state": state }) : null);
  }));
  for (const [name, value] of Object.entries(query)) if (name !== "view" && form.elements[name]) form.elements[name].value = value;
  form.addEventListener("input", () => {
    query = { ...query, ...Object.fromEntries(new FormData(form)), offset: 0 };
    fillSoon();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("before").addEventListener("click", () => turnPage(-PAGE));
  document.getElementById("after").addEventListener("click", () => turnPage(PAGE));
  await fillTable();
}

let timer;
function fillSoon() {
  clearTimeout(timer);
  timer = setTimeout(fillTable, 150);
}

function turnPage(by) {
  query.offset = Math.max(0, query.offset + by);
  fillTable();
}

function headerCells() {
  return COLUMNS.map(([key, label]) => {
    const th = element("th", { scope: "col" });
    if (key === null) {
      th.textContent = label;
      return th;
    }
    const sorted = query.sort === key;
    th.setAttribute("aria-sort", sorted ? (query.descending ? "descending" : "ascending") : "none");
    const button = element("button", { type: "button" }, label + (sorted ? (query.descending ? " ▾" : " ▴") : ""));
    button.addEventListener("click", async () => {
      query = { ...query, sort: key, descending: sorted && !query.descending, offset: 0 };
      await fillTable();
      document.querySelectorAll("thead th")[COLUMNS.findIndex(([name]) => name === key)].querySelector("button").focus();
    });
    th.append(button);
    return th;
  });
}

function tableRow(slide) {
  const id = encodeURIComponent(slide.slide_id);
  const image = slide.status === "done" ? element("img", { src: `api/v1/slides/${id}/thumbnail.jpg?small=true`, alt: "", fetchpriority: "low" }) : null;
  const link = element("a", { href: `#/slide/${id}` }, slide.slide_id);
  const stain = slide.marker !== "HER2" ? element("span", { class: "soft" }, slide.marker) : null;
  const reasons = slide.reason_words.map((words, k) => element("li", { class: k === 0 && slide.review ? "first" : "" }, words));
  const verdict = slide.verdict ? `${VERDICT_WORDS[slide.verdict](slide)}, ${slide.reviewer}` : "";
  const ish = slide.ish ? `ISH ${slide.ish === "+" ? "positive" : "negative"}` : null;
  return element("tr", { class: slide.state },
    element("th", { scope: "row" }, element("span", { class: "thumb" }, image), element("span", {}, link, stain)),
    cell("Result", slide.result && classChip(slide.result), slide.meaning ? element("span", { class: "meaning" }, slide.meaning) : null),
    cell("Reasons", reasons.length ? element("ul", { class: "reasons" }, ...reasons) : null),
    cell("Case", slide.patient_id), cell("Laboratory", [slide.lab_label, ish].filter(Boolean).join(", ")),
    cell("Score", slide.score?.toFixed(2)), cell("Age", age(slide.finished)), cell("Verdict", verdict));
}

async function fillTable() {
  const page = await fetchApi(`slides?${parameters({ limit: PAGE })}`);
  worklist = null;
  const body = document.querySelector("tbody");
  if (!body) return; // another view was opened meanwhile
  body.replaceChildren(...page.slides.map(tableRow));
  document.querySelector("thead tr").replaceChildren(...headerCells());
  for (const node of document.querySelectorAll("[data-state]")) node.textContent = page.states[node.dataset.state] ?? 0;
  document.getElementById("classes").replaceChildren(...Object.entries(page.markers).map(([marker, results]) =>
    element("span", { class: "marker" }, `${marker}:`, ...Object.entries(results).map(([name, n]) =>
      element("span", {}, name === "measured" ? name : classChip(name), ` ${n}`)))));
  const last = page.offset + page.slides.length;
  document.getElementById("count").textContent =
    page.total === 0 ? "No slide matches." : `${page.offset + 1}–${last} of ${page.total} slides`;
  document.getElementById("before").disabled = page.offset === 0;
  document.getElementById("after").disabled = last >= page.total;
  document.querySelector(".pages").hidden = page.total <= PAGE;
}

// Ids of the slides in the order of the list, up to 1,000.
async function worklistIds() {
  worklist ??= fetchApi(`slides?${parameters({ limit: 1000, offset: 0 })}`).then((page) => page.slides.map((slide) => slide.slide_id));
  return worklist;
}

// Opens the slide that is `by` places further in the list; the list itself at its end.
async function openNeighbour(slideId, by) {
  const ids = await worklistIds();
  const next = ids[ids.indexOf(slideId) + by];
  location.hash = next === undefined ? "#/" : `#/slide/${encodeURIComponent(next)}`;
}

let routes = 0;
async function route() {
  const own = ++routes;
  closeView();
  closeView = () => {};
  const match = location.hash.match(/^#\/slide\/([^/?]+)(?:\?.*)?$/);
  try {
    if (match) {
      const slideId = decodeURIComponent(match[1]);
      showTemplate("slide");
      worklistIds().catch(() => {}); // before a verdict changes the order
      const close = await showSlide(slideId, (by) => openNeighbour(slideId, by));
      if (own === routes) closeView = close;
      else close();
    } else {
      await showList();
    }
  } catch (error) {
    if (own === routes) main.replaceChildren(element("p", { role: "alert" }, String(error.message ?? error)));
  }
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
addEventListener("hashchange", async () => {
  await route();
  scrollTo(0, 0);
  main.focus({ preventScroll: true });
});
showCohort(await fetchApi("cohort"));
await route();
