// The API's own description, openapi.json, to read.

import { made } from "./parts.js";

const spec = await (await fetch("/api/v1/openapi.json")).json();
document.getElementById("about").textContent = spec.info.description;

function kind(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.type === "array") return `list of ${kind(schema.items)}`;
  return schema.enum ? schema.enum.join(" · ") : (schema.type ?? "");
}

function list(title, entries) {
  if (!entries.length) return [];
  const inside = entries.flatMap(([name, schema, words]) => [
    made("dt", {}, made("code", {}, name)), made("dd", {}, [kind(schema), words].filter(Boolean).join(": "))]);
  return [made("h3", {}, title), made("dl", {}, ...inside)];
}

for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, call] of Object.entries(methods)) {
    const body = call.requestBody?.content["application/json"].schema;
    const fields = body ? spec.components.schemas[kind(body)].properties : {};
    const codes = Object.entries(call.responses).map(([code, one]) =>
      [code, Object.values(one.content ?? {})[0]?.schema, one.description]);
    document.getElementById("calls").append(made("section", {},
      made("h2", {}, made("code", {}, `${method.toUpperCase()} ${path}`)), made("p", {}, call.description ?? call.summary),
      ...list("Parameters", (call.parameters ?? []).map((one) => [one.name, one.schema, one.description])),
      ...list("Body", Object.entries(fields).map(([name, one]) => [name, one, one.description])),
      ...list("Answers", codes)));
  }
}
