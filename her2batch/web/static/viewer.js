// The slide viewer: OpenSeadragon with magnification steps, scale bar, ruler and overlays.

import { element } from "./common.js";
import { addOverlayCanvas, levelScale, loadOverlays, showLegend } from "./overlay.js";

const byId = (id) => document.getElementById(id);
const MPP_AT_1X = 10; // µm per screen px: 40× is 0.25 µm
const MAGNIFICATIONS = [5, 10, 20, 40];

// A tile that arrives after the next slide was opened is no fault; OpenSeadragon warns of each.
const { console: libraryConsole } = OpenSeadragon;
OpenSeadragon.console = {
  ...libraryConsole,
  log: (...words) => libraryConsole.log(...words),
  error: (...words) => libraryConsole.error(...words),
  warn: (...words) => String(words[0]).startsWith("Ignoring tile") || libraryConsole.warn(...words),
};

// Opens the viewer. Overlays follow when they are loaded. Returns what closes it.
export function openViewer(slide) {
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
  viewer.canvas.setAttribute("aria-label", `Slide ${slide.row.slide_id}: arrow keys move, + and − zoom, R measures`);
  viewer.addHandler("canvas-key", (event) => {
    // digits and letters are keys of the verdict
    if (/^[a-z0-9]$/i.test(event.originalEvent.key)) event.preventDefaultAction = true;
  });
  byId("in").addEventListener("click", () => viewer.viewport.zoomBy(1.6).applyConstraints());
  byId("out").addEventListener("click", () => viewer.viewport.zoomBy(1 / 1.6).applyConstraints());
  byId("fit").addEventListener("click", () => viewer.viewport.goHome());
  byId("full").addEventListener("click", () => byId("viewer").requestFullscreen());
  const canvas = addOverlayCanvas(viewer, slide.row);
  addMagnifications(viewer, slide.row);
  for (const event of ["open", "animation", "resize"]) viewer.addHandler(event, () => updateScaleBar(viewer, slide.row));
  const closeRuler = addRuler(viewer, slide.row, canvas);
  const closeKeys = addKeys();
  viewer.addHandler("open", () => restorePosition(viewer, slide.row));
  viewer.addHandler("animation-finish", () => savePosition(viewer, slide.row));
  const overlays = addOverlays(viewer, canvas, slide);
  overlays.catch((error) => {
    if (viewer.canvas?.isConnected) byId("legend").textContent = `The overlays can't be loaded: ${error.message}`;
  });
  return () => {
    closeRuler();
    closeKeys();
    viewer.destroy();
  };
}

async function addOverlays(viewer, canvas, slide) {
  const select = byId("overlay");
  const choices = await loadOverlays(slide);
  if (!select.isConnected) return; // another slide was opened meanwhile
  canvas.setOpacity(byId("opacity").value / 100);
  select.append(...choices.map(([name], k) => element("option", { value: k }, name)));
  const show = () => {
    const [name, drawn] = choices[select.value];
    canvas.show(drawn);
    showLegend(byId("legend"), name, drawn);
    byId("cell").hidden = true;
    savePosition(viewer, slide.row);
  };
  select.addEventListener("change", show);
  for (const [name, drawn] of choices.filter(([, one]) => one?.cells)) {
    drawn.cells.changed = () => {
      if (choices[select.value][1] !== drawn) return;
      canvas.show(drawn);
      showLegend(byId("legend"), name, drawn);
    };
    drawn.cells.failed = (error) => { byId("legend").textContent = `The cells can't be loaded: ${error.message}`; };
  }
  viewer.addHandler("canvas-click", (event) => {
    const layer = choices[select.value][1]?.cells;
    if (layer && event.quick) layer.showFigures(toLevel(viewer, slide.row, event.position), byId("cell"));
  });
  const wanted = choices.findIndex(([name]) => name === savedPosition().get("overlay"));
  if (wanted > 0) {
    select.value = wanted;
    show();
  }
  byId("opacity").addEventListener("input", () => canvas.setOpacity(byId("opacity").value / 100));
}

// -- position in the address

// What the address of the slide contains beside its id: x, y (centre of the view, level-0 px), zoom (magnification), overlay.
function savedPosition() {
  return new URLSearchParams(location.hash.split("?")[1] ?? "");
}

function savePosition(viewer, row) {
  const place = levelPosition(viewer, row);
  if (!place || !location.hash.startsWith("#/slide/")) return;
  const select = byId("overlay");
  const overlay = select.options.length ? select.selectedOptions[0]?.textContent : savedPosition().get("overlay"); // not loaded yet
  const values = { x: Math.round(place.x), y: Math.round(place.y), zoom: Number(place.zoom.toPrecision(4)), ...(overlay && overlay !== "None" ? { overlay } : {}) };
  history.replaceState(history.state, "", `${location.hash.split("?")[0]}?${new URLSearchParams(values)}`);
}

function levelPosition(viewer, row) {
  const image = viewer.world.getItemAt(0);
  if (!image) return null;
  const centre = viewer.viewport.pixelFromPoint(viewer.viewport.getCenter());
  return { ...toLevel(viewer, row, centre), zoom: (MPP_AT_1X * levelScale(viewer, row)) / row.mpp };
}

function restorePosition(viewer, row) {
  const [x, y, zoom] = ["x", "y", "zoom"].map((name) => Number.parseFloat(savedPosition().get(name)));
  if (!(zoom > 0) || !Number.isFinite(x) || !Number.isFinite(y)) return;
  const image = viewer.world.getItemAt(0);
  const scale = image.getContentSize().x / row.width;
  viewer.viewport.zoomBy((zoom * row.mpp) / MPP_AT_1X / levelScale(viewer, row), null, true);
  viewer.viewport.panTo(image.imageToViewportCoordinates(x * scale, y * scale), true);
  viewer.viewport.applyConstraints(true);
}

// Level-0 px of a position on the screen.
function toLevel(viewer, row, position) {
  const image = viewer.world.getItemAt(0);
  const point = image.viewerElementToImageCoordinates(position);
  const scale = row.width / image.getContentSize().x;
  return { x: point.x * scale, y: point.y * scale };
}

// -- keys

// O turns the overlay off and on again; ? shows all keys. Returns what removes the keys.
function addKeys() {
  const select = byId("overlay");
  let last = "1";
  select.addEventListener("change", () => { if (select.value !== "0") last = select.value; });
  const onKey = (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest?.("textarea, select, input:not([type=radio])")) return;
    if (event.key === "?") byId("keys").showModal();
    if (event.key.toLowerCase() !== "o" || select.options.length < 2) return;
    if (select.value !== "0") last = select.value;
    select.value = select.value === "0" ? last : "0";
    select.dispatchEvent(new Event("change"));
  };
  byId("show-keys").addEventListener("click", () => byId("keys").showModal());
  addEventListener("keydown", onKey);
  return () => removeEventListener("keydown", onKey);
}

// -- magnification, scale bar

function addMagnifications(viewer, row) {
  byId("magnifications").replaceChildren(...MAGNIFICATIONS.map((magnification) => {
    const button = element("button", { type: "button", "aria-pressed": "false" }, `${magnification}×`);
    button.addEventListener("click", () => {
      const wanted = row.mpp / (MPP_AT_1X / magnification); // screen px per level-0 px
      viewer.viewport.zoomBy(wanted / levelScale(viewer, row));
      viewer.viewport.applyConstraints();
    });
    return button;
  }));
}

function updateScaleBar(viewer, row) {
  const px = levelScale(viewer, row) / row.mpp; // screen px per µm
  if (!(px > 0)) return;
  const power = 10 ** Math.floor(Math.log10(140 / px));
  const length = [5, 2, 1].map((digit) => digit * power).find((micrometres) => micrometres * px <= 140);
  byId("scale").firstElementChild.textContent = formatLength(length);
  byId("scale").lastElementChild.style.width = `${length * px}px`;
  const magnification = MPP_AT_1X * px;
  byId("magnification").textContent = `${magnification < 10 ? magnification.toFixed(1) : Math.round(magnification)}×`;
  [...byId("magnifications").children].forEach((button, k) =>
    button.setAttribute("aria-pressed", String(Math.abs(magnification / MAGNIFICATIONS[k] - 1) < 0.02)));
}

function formatLength(micrometres) {
  return micrometres >= 1000 ? `${Number((micrometres / 1000).toPrecision(3))} mm` : `${Number(micrometres.toPrecision(3))} µm`;
}

// -- ruler

// The button Ruler, or R, turns it on: a drag then measures instead of moving the slide.
function addRuler(viewer, row, canvas) {
  let on = false;
  let start = null;
  function turn(to) {
    on = to;
    byId("ruler").setAttribute("aria-pressed", String(on));
    viewer.canvas.classList.toggle("measuring", on);
    if (!on) canvas.measure(null);
    byId("measured").textContent = on ? "Drag over the slide to measure." : "";
  }
  function measure(end) {
    const micrometres = Math.hypot(end.x - start.x, end.y - start.y) * row.mpp;
    byId("measured").textContent = formatLength(micrometres);
    canvas.measure({ start, end, text: formatLength(micrometres) });
  }
  viewer.addHandler("canvas-press", (event) => {
    if (on) start = toLevel(viewer, row, event.position);
  });
  viewer.addHandler("canvas-drag", (event) => {
    if (!on || !start) return;
    event.preventDefaultAction = true;
    measure(toLevel(viewer, row, event.position));
  });
  viewer.addHandler("canvas-drag-end", (event) => {
    if (on) event.preventDefaultAction = true;
  });
  byId("ruler").addEventListener("click", () => turn(!on));
  const onKey = (event) => {
    if (event.key.toLowerCase() === "r" && !event.ctrlKey && !event.metaKey && !event.target.closest?.("textarea, select, input:not([type=radio])")) turn(!on);
  };
  addEventListener("keydown", onKey);
  return () => removeEventListener("keydown", onKey);
}
