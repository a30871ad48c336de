// Routes between the two views (list of slides, one slide) and shows the list.

import { cell, element, fetchApi, showCohort } from "./common.js";
import { showSlide } from "./slide.js";

const COLUMNS = [
  ["slide_id", "Slide"], ["patient_id", "Patient"], ["stain", "Stain"], ["status", "Status"], ["rule", "Rule"],
  ["score", "Score"], [null, "Bundle"], ["first", "Needs review"], ["tissue_mm2", "Tissue, mm²"], ["verdict", "Verdict"],
];
const PAGE = 100;
const main = document.getElementById("main");
let query = { q: "", status: "", predicted: "", review: "", reviewed: "", sort: "first", descending: false, offset: 0 };
let closeView = () => {};

function showTemplate(name) {
  main.replaceChildren(document.getElementById(name).content.cloneNode(true));
}

async function showList() {
  document.title = "Slides · her2batch";
  showTemplate("list");
  const form = document.getElementById("filter");
  for (const [name, value] of Object.entries(query)) if (form.elements[name]) form.elements[name].value = value;
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
  const link = element("a", { href: `#/slide/${encodeURIComponent(slide.slide_id)}` }, slide.slide_id);
  const bundle = Object.entries(slide.predicted).filter(([key]) => !key.startsWith("membrane/"))
    .map(([key, value]) => `${value} (${key.split("/").slice(1).join(", ")})`);
  const first = slide.review ? [element("b", {}, "yes"), ` ${(slide.reasons[0] ?? slide.flags[0] ?? slide.error_code ?? "")}`] : ["no"];
  const verdict = slide.verdict === "change" ? `changed to ${slide.label}` : slide.verdict === "agree" ? `agreed: ${slide.label}`
    : slide.verdict === "needs-ish" ? "needs ISH" : "";
  return element("tr", {},
    element("th", { scope: "row" }, link), cell("Patient", slide.patient_id), cell("Stain", slide.stain),
    cell("Status", slide.status === "failed" ? `failed: ${slide.error_code}` : slide.status), cell("Rule", slide.rule),
    cell("Score", slide.score?.toFixed(2)), cell("Bundle", bundle.join("; ")), cell("Needs review", ...first),
    cell("Tissue, mm²", slide.tissue_mm2?.toFixed(1)), cell("Verdict", verdict));
}

async function fillTable() {
  const parameters = Object.entries({ ...query, limit: PAGE }).filter(([, value]) => value !== "");
  const page = await fetchApi(`slides?${new URLSearchParams(parameters)}`);
  const body = document.querySelector("tbody");
  if (!body) return; // another view was opened meanwhile
  body.replaceChildren(...page.slides.map(tableRow));
  document.querySelector("thead tr").replaceChildren(...headerCells());
  const last = page.offset + page.slides.length;
  document.getElementById("count").textContent =
    page.total === 0 ? "No slide matches." : `${page.offset + 1}–${last} of ${page.total} slides`;
  document.getElementById("before").disabled = page.offset === 0;
  document.getElementById("after").disabled = last >= page.total;
  document.querySelector(".pages").hidden = page.total <= PAGE;
}

async function route() {
  closeView();
  closeView = () => {};
  const match = location.hash.match(/^#\/slide\/([^/]+)$/);
  try {
    if (match) {
      showTemplate("slide");
      closeView = await showSlide(decodeURIComponent(match[1]));
    } else {
      await showList();
    }
  } catch (error) {
    main.replaceChildren(element("p", { role: "alert" }, String(error.message ?? error)));
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
