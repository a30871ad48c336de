// Shows the OpenAPI description of the API as a readable page.

import { element } from "./common.js";

const spec = await (await fetch("openapi.json")).json();
document.getElementById("about").textContent = spec.info.description;

function typeName(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeName).join(" or ");
  if (schema.type === "array") return `list of ${typeName(schema.items)}`;
  return schema.enum ? schema.enum.join(" · ") : (schema.type ?? "");
}

function fieldList(title, entries) {
  if (!entries.length) return [];
  const items = entries.flatMap(([name, schema, description]) => [
    element("dt", {}, element("code", {}, name)), element("dd", {}, [typeName(schema), description].filter(Boolean).join(": "))]);
  return [element("h3", {}, title), element("dl", {}, ...items)];
}

for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, call] of Object.entries(methods)) {
    const body = call.requestBody?.content["application/json"].schema;
    const fields = body ? spec.components.schemas[typeName(body)].properties : {};
    const codes = Object.entries(call.responses).map(([code, response]) =>
      [code, Object.values(response.content ?? {})[0]?.schema, response.description]);
    document.getElementById("calls").append(element("section", {},
      element("h2", {}, element("code", {}, `${method.toUpperCase()} ${path}`)), element("p", {}, call.description ?? call.summary),
      ...fieldList("Parameters", (call.parameters ?? []).map((parameter) => [parameter.name, parameter.schema, parameter.description])),
      ...fieldList("Body", Object.entries(fields).map(([name, schema]) => [name, schema, schema.description])),
      ...fieldList("Responses", codes)));
  }
}
