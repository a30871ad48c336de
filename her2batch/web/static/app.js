// The page: which view an address shows, and the list of slides.

import { ask, cell, made, shown } from "./parts.js";
import { showSlide } from "./slide.js";

const COLUMNS = [
  ["slide_id", "Slide"], ["patient_id", "Patient"], ["stain", "Stain"], ["status", "Status"], ["rule", "Rule"],
  ["score", "Score"], [null, "Bundle"], ["first", "Look first"], ["tissue_mm2", "Tissue, mm²"], ["verdict", "Verdict"],
];
const PAGE = 100;
const main = document.getElementById("main");
let asked = { q: "", status: "", predicted: "", review: "", reviewed: "", sort: "first", descending: false, offset: 0 };
let leave = () => {};

function view(name) {
  main.replaceChildren(document.getElementById(name).content.cloneNode(true));
}

async function showList() {
  document.title = "Slides · her2batch";
  view("list");
  const form = document.getElementById("filter");
  for (const [name, value] of Object.entries(asked)) if (form.elements[name]) form.elements[name].value = value;
  form.addEventListener("input", () => {
    asked = { ...asked, ...Object.fromEntries(new FormData(form)), offset: 0 };
    soon();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("before").addEventListener("click", () => turn(-PAGE));
  document.getElementById("after").addEventListener("click", () => turn(PAGE));
  await fill();
}

let waiting;
function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(fill, 150);
}

function turn(by) {
  asked.offset = Math.max(0, asked.offset + by);
  fill();
}

function head() {
  return COLUMNS.map(([key, words]) => {
    const th = made("th", { scope: "col" });
    if (key === null) {
      th.textContent = words;
      return th;
    }
    const sorted = asked.sort === key;
    th.setAttribute("aria-sort", sorted ? (asked.descending ? "descending" : "ascending") : "none");
    const button = made("button", { type: "button" }, words + (sorted ? (asked.descending ? " ▾" : " ▴") : ""));
    button.addEventListener("click", async () => {
      asked = { ...asked, sort: key, descending: sorted && !asked.descending, offset: 0 };
      await fill();
      document.querySelectorAll("thead th")[COLUMNS.findIndex((one) => one[0] === key)].querySelector("button").focus();
    });
    th.append(button);
    return th;
  });
}

function row(one) {
  const link = made("a", { href: `#/slide/${encodeURIComponent(one.slide_id)}` }, one.slide_id);
  const bundle = Object.entries(one.predicted).filter(([key]) => !key.startsWith("membrane/"))
    .map(([key, value]) => `${value} (${key.split("/").slice(1).join(", ")})`);
  const first = one.review ? [made("b", {}, "yes"), ` ${(one.reasons[0] ?? one.flags[0] ?? one.error_code ?? "")}`] : ["no"];
  const verdict = one.verdict === "change" ? `changed to ${one.label}` : one.verdict === "agree" ? `agreed: ${one.label}`
    : one.verdict === "needs-ish" ? "needs ISH" : "";
  return made("tr", {},
    made("th", { scope: "row" }, link), cell("Patient", one.patient_id), cell("Stain", one.stain),
    cell("Status", one.status === "failed" ? `failed: ${one.error_code}` : one.status), cell("Rule", one.rule),
    cell("Score", one.score?.toFixed(2)), cell("Bundle", bundle.join("; ")), cell("Look first", ...first),
    cell("Tissue, mm²", one.tissue_mm2?.toFixed(1)), cell("Verdict", verdict));
}

async function fill() {
  const wanted = Object.entries({ ...asked, limit: PAGE }).filter(([, value]) => value !== "");
  const page = await ask(`slides?${new URLSearchParams(wanted)}`);
  const body = document.querySelector("tbody");
  if (!body) return; // another view was opened meanwhile
  body.replaceChildren(...page.slides.map(row));
  document.querySelector("thead tr").replaceChildren(...head());
  const last = page.offset + page.slides.length;
  document.getElementById("count").textContent =
    page.total === 0 ? "No slide fits." : `${page.offset + 1}–${last} of ${page.total} slides`;
  document.getElementById("before").disabled = page.offset === 0;
  document.getElementById("after").disabled = last >= page.total;
  document.querySelector(".pages").hidden = page.total <= PAGE;
}

async function route() {
  leave();
  leave = () => {};
  const found = location.hash.match(/^#\/slide\/([^/]+)$/);
  try {
    if (found) {
      view("slide");
      leave = await showSlide(decodeURIComponent(found[1]));
    } else {
      await showList();
    }
  } catch (error) {
    main.replaceChildren(made("p", { role: "alert" }, String(error.message ?? error)));
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
shown(await ask("cohort"));
await route();
