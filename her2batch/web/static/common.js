// Shared by both views: requests to the API, and DOM elements.

export let cohort = null;

export function showCohort(facts) {
  cohort = facts;
  document.getElementById("cohort").textContent = `${facts.name} · ${facts.slides} slides`;
}

export async function fetchApi(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-her2batch": "1" },
    body: JSON.stringify(body),
  };
  const response = await fetch(`/api/v1/${path}`, options);
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
