// What both views use: the API, and elements.

export let cohort = null;

export function shown(facts) {
  cohort = facts;
  document.getElementById("cohort").textContent = `${facts.name} · ${facts.slides} slides`;
}

export async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "content-type": "application/json", "x-her2batch": "1" },
    body: JSON.stringify(body),
  };
  const answer = await fetch(`/api/v1/${path}`, options);
  const data = await answer.json().catch(() => ({ detail: answer.statusText }));
  if (!answer.ok) {
    const detail = data.detail;
    throw new Error(Array.isArray(detail) ? detail.map((one) => `${one.loc.at(-1)}: ${one.msg}`).join("; ") : detail);
  }
  return data;
}

export function made(name, attributes = {}, ...inside) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inside.filter((one) => one !== null && one !== undefined));
  return element;
}

export function cell(label, ...inside) {
  const empty = inside.every((one) => one === null || one === undefined || one === "");
  return made("td", { "data-label": label }, ...(empty ? ["–"] : inside));
}
