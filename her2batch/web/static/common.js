// Shared by both views: requests to the API, and DOM elements.

import { classVariable, hasColour } from "./colours.js";

export let cohort = null;

export function showCohort(facts) {
  cohort = facts;
  document.getElementById("cohort").textContent = `${facts.name} · ${facts.slides} slides`;
  document.getElementById("report").hidden = !facts.report;
  document.getElementById("nights").hidden = !facts.nights;
  const note = document.getElementById("note");
  note.textContent = facts.note ?? "";
  note.hidden = !facts.note;
}

export async function fetchApi(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-her2batch": "1" },
    body: JSON.stringify(body),
  };
  const response = await fetch(`api/v1/${path}`, options);
  const data = await response.json().catch(() => ({ detail: response.statusText }));
  if (!response.ok) {
    const detail = data.detail;
    throw new Error(Array.isArray(detail) ? detail.map((error) => `${error.loc.at(-1)}: ${error.msg}`).join("; ") : detail);
  }
  return data;
}

export function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function cell(label, ...children) {
  const empty = children.every((child) => child === null || child === undefined || child === "");
  return element("td", { "data-label": label }, ...(empty ? ["–"] : children));
}

// A class with its colour. Colour is never the only sign: the class stands beside it. A number has no colour.
export function classChip(name) {
  if (!hasColour(name) && Number.isFinite(Number(name))) return element("span", { class: "class-chip" }, name);
  const swatch = element("i", { class: `class-swatch ${classVariable(name)}` });
  return element("span", { class: "class-chip" }, swatch, name);
}

export const VERDICT_WORDS = {
  agree: (entry) => `agreed: ${entry.label ?? entry.predicted}`,
  change: (entry) => `changed to ${entry.label}`,
  "needs-ish": () => "needs ISH",
};

// Time since a moment in the largest whole unit: 40 min, 5 h, 3 d.
export function age(moment) {
  if (!moment) return "";
  const minutes = Math.max(0, Math.floor((Date.now() - new Date(moment)) / 60000));
  if (minutes < 60) return `${minutes} min`;
  return minutes < 48 * 60 ? `${Math.floor(minutes / 60)} h` : `${Math.floor(minutes / 1440)} d`;
}
