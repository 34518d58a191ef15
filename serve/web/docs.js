// Shows openapi.json; no library, nothing from elsewhere.

import { make } from "./dom.js";

const element = (name, ...children) => make(name, {}, ...children);

const follow = (schema, all) => (schema?.$ref ? all[schema.$ref.split("/").at(-1)] : schema) ?? {};

function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").at(-1);
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.type === "array") return `[${kind(schema.items ?? {})}]`;
  return schema.format ?? schema.type ?? "any";
}

function table(schema) {
  const rows = Object.entries(schema.properties ?? {}).map(([name, field]) => {
    const mark = schema.required?.includes(name) ? "" : field.default === undefined ? "" : ` = ${JSON.stringify(field.default)}`;
    return element("tr", element("td", name), element("td", kind(field) + mark), element("td", field.description ?? ""));
  });
  return element("table", element("thead", element("tr", ...["field", "type", "meaning"].map((t) => element("th", t)))), element("tbody", ...rows));
}

function example(method, path, content) {
  const url = `${location.origin}${new URL(".", location).pathname.slice(0, -1)}${path}`;
  const form = content["multipart/form-data"]?.schema;
  if (form) return `curl -F image=@xray.png ${form.required.includes("report") ? '-F report="There is a large right pleural effusion." ' : ""}${url}`;
  if (content["application/json"]) return `curl --json '{"report": "There is a large right pleural effusion."}' ${url}`;
  return `curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${url}`;
}

function endpoint(path, method, about, all) {
  const content = about.requestBody?.content ?? {};
  const title = element("h2", element("b", method.toUpperCase()), path);
  const parts = [title, element("p", [about.summary, about.description].filter(Boolean).join(". "))];
  parts.push(element("pre", example(method, path, content)));
  for (const [type, { schema }] of Object.entries(content)) parts.push(element("h3", `Body: ${type}`), table(follow(schema, all)));
  const good = follow(about.responses?.[200]?.content?.["application/json"]?.schema, all);
  if (good.properties) parts.push(element("details", element("summary", "Answer"), table(good)));
  const codes = Object.keys(about.responses ?? {}).filter((code) => code !== "200").join(", ");
  if (codes) parts.push(element("p", `Errors (application/problem+json): ${codes}`));
  return make("section", { className: "endpoint" }, ...parts);
}

const description = await (await fetch("openapi.json")).json();
const all = description.components?.schemas ?? {};
const sections = Object.entries(description.paths).flatMap(([path, methods]) =>
  Object.entries(methods).map(([method, about]) => endpoint(path, method, about, all)),
);
document.getElementById("paths").replaceChildren(...sections);
