// One slide: viewer, overlays, what is predicted and why, and the verdict.

import { ask, cell, cohort, made } from "./parts.js";
import { layer, legend, overlaysOf, scaleOf } from "./overlay.js";

const HER2 = ["her2-4way", "her2-3way", "her2-binary"];
const at = (id) => document.getElementById(id);

export async function showSlide(slideId) {
  document.title = `${slideId} · her2batch`;
  document.querySelector("h1").textContent = slideId;
  const slide = await ask(`slides/${encodeURIComponent(slideId)}`);
  predictions(slide);
  shares(slide.shares);
  reviews(slide.reviews);
  facts(slide.row);
  form(slide);
  return await look(slide);
}

// -- viewer

async function look(slide) {
  const source = slide.deepzoom ?? (slide.thumbnail && { type: "image", url: slide.thumbnail });
  if (!source) {
    at("viewer").replaceChildren(made("p", {}, slide.row.error ?? "There is no picture of this slide."));
    at("viewer").previousElementSibling.hidden = true;
    return () => {};
  }
  const viewer = OpenSeadragon({
    element: at("viewer"), tileSources: source, drawer: "canvas", showNavigationControl: false, showNavigator: true,
    navigatorPosition: "TOP_RIGHT", navigatorSizeRatio: 0.16, navigatorBackground: "#fff", maxZoomPixelRatio: 2, visibilityRatio: 0.5,
    animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.4, crossOriginPolicy: false,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, imageLoaderLimit: 6,
  });
  viewer.canvas.setAttribute("role", "application");
  viewer.canvas.setAttribute("aria-label", `Slide ${slide.row.slide_id}: arrow keys move, + and − zoom, 0 shows all of it`);
  at("in").addEventListener("click", () => viewer.viewport.zoomBy(1.6).applyConstraints());
  at("out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.6).applyConstraints());
  at("fit").addEventListener("click", () => viewer.viewport.goHome());
  at("full").addEventListener("click", () => at("viewer").requestFullscreen());
  for (const event of ["open", "animation", "resize"]) viewer.addHandler(event, () => scaleBar(viewer, slide.row));
  const level0 = !slide.deepzoom && (() => scaleOf(viewer)); // a picture's px are not level-0 px: no overlay, no scale
  if (!level0) await overlays(viewer, slide);
  return () => viewer.destroy();
}

async function overlays(viewer, slide) {
  const choices = await overlaysOf(slide.row.slide_id, slide.overlays);
  const canvas = layer(viewer);
  canvas.opacity(at("opacity").value / 100);
  at("overlay").append(...choices.map(([name], k) => made("option", { value: k }, name)));
  at("overlay").addEventListener("change", () => {
    const [name, drawn] = choices[at("overlay").value];
    canvas.show(drawn);
    legend(at("legend"), name, drawn);
  });
  at("opacity").addEventListener("input", () => canvas.opacity(at("opacity").value / 100));
}

function scaleBar(viewer, row) {
  const px = (scaleOf(viewer) * 1000) / row.mpp; // screen px per mm
  if (!(px > 0)) return;
  const power = 10 ** Math.floor(Math.log10(140 / px));
  const mm = [5, 2, 1].map((one) => one * power).find((one) => one * px <= 140);
  at("scale").firstElementChild.textContent = `${Number(mm.toPrecision(1))} mm`;
  at("scale").lastElementChild.style.width = `${mm * px}px`;
}

// -- what is known

function predictions(slide) {
  at("predictions").replaceChildren(...slide.predictions.map((one) => made("article", {},
    made("h3", {}, made("b", {}, one.predicted), ` ${one.task}, ${one.method}`, one.review ? made("em", {}, "look first") : null),
    bars(one), ...one.reasons.map((why) => made("span", { class: "chip" }, why)))));
  if (!slide.predictions.length) {
    at("predictions").replaceChildren(made("p", {}, slide.row.error ?? "Nothing is predicted of this slide."));
  }
}

function bars(one) {
  return made("ul", { class: "bars" }, ...one.classes.map((name, k) => {
    const bar = made("i");
    bar.style.width = `${Math.round(100 * one.p[k])}%`;
    const plausible = one.plausible.includes(name) ? "" : " unlikely";
    return made("li", { class: plausible.trim() }, made("span", {}, name), made("span", {}, bar), `${Math.round(100 * one.p[k])} %`);
  }));
}

function shares(found) {
  if (!found) {
    at("shares").replaceChildren(made("p", {}, "None."));
    return;
  }
  const percent = (name) => `${(100 * found[name]).toFixed(1)} %`;
  const rows = [["faint or stronger", "faint"], ["moderate or stronger", "moderate"], ["intense", "intense"]].map(
    ([words, name]) => made("tr", {}, made("th", { scope: "row" }, words), cell("All", percent(name)),
      cell("Complete", percent(`${name}_complete`))));
  const head = made("tr", {}, ...["Membranes", "All", "Complete"].map((words) => made("th", { scope: "col" }, words)));
  at("shares").replaceChildren(
    made("table", { class: "small" }, made("thead", {}, head), made("tbody", {}, ...rows)),
    made("p", {}, `Of the cellular area, which is ${percent("cells")} of the tiles.`));
}

function reviews(found) {
  at("reviews").replaceChildren(...[...found].reverse().map((one) => {
    const words = { agree: `agrees with ${one.predicted}`, change: `${one.predicted} → ${one.label}`, "needs-ish": "needs ISH" };
    return made("li", { value: one.number }, made("b", {}, words[one.verdict]), ` (${one.task}, ${one.method}) `,
      made("span", { class: "who" }, `${one.reviewer}, ${new Date(one.time).toLocaleString()}`),
      one.comment ? made("q", {}, one.comment) : null);
  }));
  if (!found.length) at("reviews").replaceChildren(made("li", { class: "none" }, "None."));
}

function facts(row) {
  const known = {
    Patient: row.patient_id, Stain: row.stain, Status: row.status, Error: row.error, "Tissue, mm²": row.tissue_mm2?.toFixed(2),
    Tiles: row.n_tiles, Flags: row.flags?.join(", "), "Size, px": row.width && `${row.width} × ${row.height}`,
    "Resolution, µm/px": row.mpp && `${row.mpp.toFixed(4)} (${row.mpp_source})`, Format: row.format, File: row.path,
    "SHA-256": row.sha256, Plan: row.plan_id,
  };
  at("facts").replaceChildren(...Object.entries(known).filter(([, value]) => value).flatMap(
    ([name, value]) => [made("dt", {}, name), made("dd", {}, String(value))]));
}

// -- verdict

function form(slide) {
  const verdict = at("verdict");
  const fields = verdict.elements;
  if (!slide.predictions.length) {
    verdict.replaceChildren(made("p", {}, "There is no prediction to judge."));
    return;
  }
  fields.prediction.append(...slide.predictions.map((one, k) =>
    made("option", { value: k }, `${one.predicted} (${one.task}, ${one.method})`)));
  const chosen = () => slide.predictions[fields.prediction.value];
  function fit() {
    const one = chosen();
    fields.label.replaceChildren(...cohort.tasks[one.task].filter((name) => name !== one.predicted).map((name) =>
      made("option", {}, name)));
    at("ish").hidden = !HER2.includes(one.task);
    if (at("ish").hidden && fields.verdict.value === "needs-ish") fields.verdict.value = "agree";
  }
  fields.prediction.addEventListener("change", fit);
  fields.label.addEventListener("change", () => { fields.verdict.value = "change"; });
  fields.reviewer.value = sessionStorage.getItem("reviewer") ?? "";
  fit();
  verdict.addEventListener("submit", async (event) => {
    event.preventDefault();
    const one = chosen();
    const said = fields.verdict.value;
    at("saved").textContent = "Saving …";
    try {
      const entry = await ask("reviews", {
        slide_id: slide.row.slide_id, bundle: one.bundle, task: one.task, method: one.method, predicted: one.predicted,
        verdict: said, label: said === "change" ? fields.label.value : null, comment: fields.comment.value,
        reviewer: fields.reviewer.value,
      });
      sessionStorage.setItem("reviewer", fields.reviewer.value);
      at("saved").textContent = `Saved as review ${entry.number}.`;
      fields.comment.value = "";
      reviews((await ask(`slides/${encodeURIComponent(slide.row.slide_id)}`)).reviews);
    } catch (error) {
      at("saved").textContent = `Not saved: ${error.message}`;
    }
  });
}
