// Shows one slide: its result with the reasons for review, the viewer, the form for a verdict, and the evidence.

import { showPercentages } from "./cells.js";
import { cell, classChip, element, fetchApi } from "./common.js";
import { classVariable, NUCLEAR_STAINS } from "./colours.js";
import { setUpVerdict } from "./verdict.js";
import { openViewer } from "./viewer.js";

const byId = (id) => document.getElementById(id);

// Shows a slide. openNeighbour: opens the next (1) or previous (-1) slide of the list. Returns what closes the view.
export async function showSlide(slideId, openNeighbour) {
  document.title = `${slideId} · her2batch`;
  const heading = document.querySelector("h1");
  heading.textContent = slideId;
  const slide = await fetchApi(`slides/${encodeURIComponent(slideId)}`);
  if (!heading.isConnected) return () => {}; // another view was opened meanwhile
  showAssessment(slide);
  showMethods(slide.assessment);
  showShares(NUCLEAR_STAINS.includes(slide.row.stain) ? null : slide.shares); // membranes of an ER slide mean nothing
  showPercentages(byId("cell-shares"), slide.predictions.find((one) => one.bundle === "cells"), slide.row.stain);
  showCase(slide);
  showDetails(slide.row);
  byId("next").addEventListener("click", () => openNeighbour(1));
  byId("previous").addEventListener("click", () => openNeighbour(-1));
  const closeVerdict = setUpVerdict(slide, openNeighbour, async () => {
    const decided = await fetchApi(`slides/${encodeURIComponent(slideId)}`);
    if (heading.isConnected) showAssessment(decided);
  });
  const closeViewer = openViewer(slide);
  return () => {
    closeVerdict();
    closeViewer();
  };
}

const STATES = { review: "to review", decided: "decided", clear: "no review needed", other: "not scored" };

function showAssessment({ row, assessment, report }) {
  const { result, meaning, by, reasons } = assessment;
  byId("result").className = `result ${result ? classVariable(result) : "cx"}`;
  const source = by === "pathologist" ? "by a pathologist" : by === "membrane" ? "by the membrane rule" : by ? `by ${by}` : "";
  byId("result").replaceChildren(
    element("p", { class: "score" }, result ?? "–"),
    element("p", {}, element("b", {}, meaning), element("span", { class: "soft" }, source),
      element("span", { class: `state ${assessment.state}` }, STATES[assessment.state])));
  const ish = assessment.ish ? `, ISH ${assessment.ish === "+" ? "positive" : "negative"}` : assessment.derived.length ? ", no ISH result" : "";
  byId("laboratory").replaceChildren("Laboratory: ", assessment.label ? classChip(assessment.label) : "no result",
    assessment.label_detail ? ` (${assessment.label_detail})` : "", ish);
  byId("derived").replaceChildren(...assessment.derived.map((one) =>
    element("li", { class: one.predicted ? "" : "hanging" }, `${one.name}: `, one.predicted ? classChip(one.predicted) : one.text)));
  byId("derived").previousElementSibling.hidden = !assessment.derived.length;
  byId("reasons").replaceChildren(...reasons.map((reason) => element("li", { class: reason.kind }, reason.words)));
  if (!reasons.length) byId("reasons").replaceChildren(element("li", { class: "none" }, "None."));
  const quality = reasons.filter((reason) => reason.kind === "quality");
  byId("banner").hidden = !quality.length;
  byId("banner").textContent = `Look at the image first: ${quality.map((reason) => reason.words).join("; ")}.`;
  byId("to-report").hidden = !report;
  if (report) byId("to-report").href = report;
}

function showMethods(assessment) {
  byId("methods").replaceChildren(...assessment.methods.map((one) => element("tr", { class: one.predicted ? "" : "hanging" },
    element("th", { scope: "row" }, one.name), cell("Method", one.method), cell("Class", one.predicted && !one.text.includes(" ") ? classChip(one.text) : one.text))));
  const table = byId("methods").closest("table");
  table.hidden = table.previousElementSibling.hidden = !assessment.methods.length;
}

function showShares(shares) {
  byId("shares").previousElementSibling.hidden = !shares;
  if (!shares) return;
  const percent = (name) => `${(100 * shares[name]).toFixed(1)} %`;
  const rows = [["faint or stronger", "faint"], ["moderate or stronger", "moderate"], ["intense", "intense"]].map(
    ([label, name]) => element("tr", {}, element("th", { scope: "row" }, label), cell("Total", percent(name)),
      cell("Complete", percent(`${name}_complete`))));
  const head = element("tr", {}, ...["Membranes", "Total", "Complete"].map((label) => element("th", { scope: "col" }, label)));
  byId("shares").replaceChildren(
    element("table", { class: "small" }, element("thead", {}, head), element("tbody", {}, ...rows)),
    element("p", {}, `Shares of the cellular area. The cellular area is ${percent("cells")} of the tiles.`));
}

function showCase(slide) {
  byId("case").replaceChildren(...slide.case.map((other) => element("li", {},
    element("a", { href: `#/slide/${encodeURIComponent(other.slide_id)}` }, other.slide_id), ` ${other.marker}: `,
    other.result ? classChip(other.result) : null, ` ${other.meaning}`)));
  if (!slide.case.length) byId("case").replaceChildren(element("li", { class: "none" }, "No other slide."));
}

function showDetails(row) {
  const details = {
    Patient: row.patient_id, Stain: row.stain, Status: row.status, Error: row.error, "Tissue, mm²": row.tissue_mm2?.toFixed(2),
    Tiles: row.n_tiles, Flags: row.flags?.join(", "), "Size, px": row.width && `${row.width} × ${row.height}`,
    "Resolution, µm/px": row.mpp && `${row.mpp.toFixed(4)} (${row.mpp_source})`, Format: row.format, File: row.path,
    "SHA-256": row.sha256, Plan: row.plan_id,
  };
  byId("facts").replaceChildren(...Object.entries(details).filter(([, value]) => value).flatMap(
    ([name, value]) => [element("dt", {}, name), element("dd", {}, String(value))]));
}
