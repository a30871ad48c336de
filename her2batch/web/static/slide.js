// Shows one slide: viewer, overlays, predictions with their reasons, and the form for a verdict.

import { cell, cohort, element, fetchApi } from "./common.js";
import { addOverlayCanvas, loadOverlays, screenScale, showLegend } from "./overlay.js";

const HER2 = ["her2-4way", "her2-3way", "her2-binary"];
const byId = (id) => document.getElementById(id);

export async function showSlide(slideId) {
  document.title = `${slideId} · her2batch`;
  document.querySelector("h1").textContent = slideId;
  const slide = await fetchApi(`slides/${encodeURIComponent(slideId)}`);
  showPredictions(slide);
  showShares(slide.shares);
  showReviews(slide.reviews);
  showDetails(slide.row);
  setUpVerdictForm(slide);
  return await openViewer(slide);
}

// -- viewer

async function openViewer(slide) {
  const source = slide.deepzoom ?? (slide.thumbnail && { type: "image", url: slide.thumbnail });
  if (!source) {
    byId("viewer").replaceChildren(element("p", {}, slide.row.error ?? "There is no image of this slide."));
    byId("viewer").previousElementSibling.hidden = true;
    return () => {};
  }
  const viewer = OpenSeadragon({
    element: byId("viewer"), tileSources: source, drawer: "canvas", showNavigationControl: false, showNavigator: true,
    navigatorPosition: "TOP_RIGHT", navigatorSizeRatio: 0.16, navigatorBackground: "#fff", maxZoomPixelRatio: 2, visibilityRatio: 0.5,
    animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.4, crossOriginPolicy: false,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true }, imageLoaderLimit: 6,
  });
  viewer.canvas.setAttribute("role", "application");
  viewer.canvas.setAttribute("aria-label", `Slide ${slide.row.slide_id}: arrow keys move, + and − zoom, 0 shows the whole slide`);
  byId("in").addEventListener("click", () => viewer.viewport.zoomBy(1.6).applyConstraints());
  byId("out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.6).applyConstraints());
  byId("fit").addEventListener("click", () => viewer.viewport.goHome());
  byId("full").addEventListener("click", () => byId("viewer").requestFullscreen());
  for (const event of ["open", "animation", "resize"]) viewer.addHandler(event, () => updateScaleBar(viewer, slide.row));
  if (slide.deepzoom) await addOverlays(viewer, slide); // px of a thumbnail are not level-0 px, the unit of overlays
  return () => viewer.destroy();
}

async function addOverlays(viewer, slide) {
  const choices = await loadOverlays(slide.row.slide_id, slide.overlays);
  const canvas = addOverlayCanvas(viewer);
  canvas.setOpacity(byId("opacity").value / 100);
  byId("overlay").append(...choices.map(([name], k) => element("option", { value: k }, name)));
  byId("overlay").addEventListener("change", () => {
    const [name, drawn] = choices[byId("overlay").value];
    canvas.show(drawn);
    showLegend(byId("legend"), name, drawn);
  });
  byId("opacity").addEventListener("input", () => canvas.setOpacity(byId("opacity").value / 100));
}

function updateScaleBar(viewer, row) {
  const px = (screenScale(viewer) * 1000) / row.mpp; // screen px per mm
  if (!(px > 0)) return;
  const power = 10 ** Math.floor(Math.log10(140 / px));
  const mm = [5, 2, 1].map((digit) => digit * power).find((length) => length * px <= 140);
  byId("scale").firstElementChild.textContent = `${Number(mm.toPrecision(1))} mm`;
  byId("scale").lastElementChild.style.width = `${mm * px}px`;
}

// -- predictions and details

function showPredictions(slide) {
  byId("predictions").replaceChildren(...slide.predictions.map((prediction) => element("article", {},
    element("h3", {}, element("b", {}, prediction.predicted), ` ${prediction.task}, ${prediction.method}`, prediction.review ? element("em", {}, "needs review") : null),
    probabilityBars(prediction), ...prediction.reasons.map((reason) => element("span", { class: "chip" }, reason)))));
  if (!slide.predictions.length) {
    byId("predictions").replaceChildren(element("p", {}, slide.row.error ?? "There is no prediction for this slide."));
  }
}

function probabilityBars(prediction) {
  return element("ul", { class: "bars" }, ...prediction.classes.map((name, k) => {
    const bar = element("i");
    bar.style.width = `${Math.round(100 * prediction.p[k])}%`;
    const plausible = prediction.plausible.includes(name) ? "" : " unlikely";
    return element("li", { class: plausible.trim() }, element("span", {}, name), element("span", {}, bar), `${Math.round(100 * prediction.p[k])} %`);
  }));
}

function showShares(shares) {
  if (!shares) {
    byId("shares").replaceChildren(element("p", {}, "None."));
    return;
  }
  const percent = (name) => `${(100 * shares[name]).toFixed(1)} %`;
  const rows = [["faint or stronger", "faint"], ["moderate or stronger", "moderate"], ["intense", "intense"]].map(
    ([label, name]) => element("tr", {}, element("th", { scope: "row" }, label), cell("Total", percent(name)),
      cell("Complete", percent(`${name}_complete`))));
  const head = element("tr", {}, ...["Membranes", "Total", "Complete"].map((label) => element("th", { scope: "col" }, label)));
  byId("shares").replaceChildren(
    element("table", { class: "small" }, element("thead", {}, head), element("tbody", {}, ...rows)),
    element("p", {}, `Shares of the cellular area. The cellular area is ${percent("cells")} of the tiles.`));
}

function showReviews(entries) {
  byId("reviews").replaceChildren(...[...entries].reverse().map((review) => {
    const sentences = { agree: `agrees with ${review.predicted}`, change: `${review.predicted} → ${review.label}`, "needs-ish": "needs ISH" };
    return element("li", { value: review.number }, element("b", {}, sentences[review.verdict]), ` (${review.task}, ${review.method}) `,
      element("span", { class: "who" }, `${review.reviewer}, ${new Date(review.time).toLocaleString()}`),
      review.comment ? element("q", {}, review.comment) : null);
  }));
  if (!entries.length) byId("reviews").replaceChildren(element("li", { class: "none" }, "None."));
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

// -- verdict

function setUpVerdictForm(slide) {
  const form = byId("verdict");
  const fields = form.elements;
  if (!slide.predictions.length) {
    form.replaceChildren(element("p", {}, "There is no prediction to review."));
    return;
  }
  fields.prediction.append(...slide.predictions.map((prediction, k) =>
    element("option", { value: k }, `${prediction.predicted} (${prediction.task}, ${prediction.method})`)));
  const selectedPrediction = () => slide.predictions[fields.prediction.value];
  function updateChoices() {
    const prediction = selectedPrediction();
    fields.label.replaceChildren(...cohort.tasks[prediction.task].filter((name) => name !== prediction.predicted).map((name) =>
      element("option", {}, name)));
    byId("ish").hidden = !HER2.includes(prediction.task);
    if (byId("ish").hidden && fields.verdict.value === "needs-ish") fields.verdict.value = "agree";
  }
  fields.prediction.addEventListener("change", updateChoices);
  fields.label.addEventListener("change", () => { fields.verdict.value = "change"; });
  fields.reviewer.value = sessionStorage.getItem("reviewer") ?? "";
  updateChoices();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const prediction = selectedPrediction();
    const choice = fields.verdict.value;
    byId("saved").textContent = "Saving …";
    try {
      const entry = await fetchApi("reviews", {
        slide_id: slide.row.slide_id, bundle: prediction.bundle, task: prediction.task, method: prediction.method, predicted: prediction.predicted,
        verdict: choice, label: choice === "change" ? fields.label.value : null, comment: fields.comment.value,
        reviewer: fields.reviewer.value,
      });
      sessionStorage.setItem("reviewer", fields.reviewer.value);
      byId("saved").textContent = `Saved as review ${entry.number}.`;
      fields.comment.value = "";
      showReviews((await fetchApi(`slides/${encodeURIComponent(slide.row.slide_id)}`)).reviews);
    } catch (error) {
      byId("saved").textContent = `Not saved: ${error.message}`;
    }
  });
}
