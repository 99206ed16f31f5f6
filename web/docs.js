// Shows openapi.json: every route with its fields. Text only ever enters the page as text.

const element = (name, text, ...children) => {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
};

const typeOf = (schema) => {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" | ");
  const types = [schema.type ?? "any"].flat().filter((type) => type !== "null");
  const name = types.map((type) => (type === "array" && schema.items ? `list of ${typeOf(schema.items)}` : type)).join(" | ");
  const least = schema.minimum ?? (schema.exclusiveMinimum === undefined ? undefined : `above ${schema.exclusiveMinimum}`);
  if (least === undefined && schema.maximum === undefined) return name;
  return `${name}, ${[least, schema.maximum].map((bound) => bound ?? "…").join(" to ")}`;
};

const fieldsOf = (schema) => {
  const table = element("table");
  table.append(element("thead", "", element("tr", "", element("th", "field"), element("th", "type"), element("th", "what it does"))));
  const body = element("tbody");
  for (const [name, field] of Object.entries(schema.properties)) {
    const label = element("td", "", element("code", name));
    if (schema.required.includes(name)) label.append(" (required)");
    body.append(element("tr", "", label, element("td", typeOf(field)), element("td", field.description)));
  }
  table.append(body);
  const details = element("details", "", element("summary", "Fields of the body"), table);
  return details;
};

const show = (api) => {
  const main = document.getElementById("routes");
  main.replaceChildren();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const section = element("section", "", element("h2", `${method.toUpperCase()} ${path}`), element("p", operation.summary));
      const answers = Object.entries(operation.responses)
        .map(([status, answer]) => `${status === "default" ? "else" : status}: ${Object.keys(answer.content ?? {}).join(" or ") || answer.description}`);
      section.append(element("p", `Answers ${answers.join("; ")}.`));
      const body = operation.requestBody?.content["application/json"].schema.$ref;
      if (body) section.append(fieldsOf(api.components.schemas[body.split("/").pop()]));
      main.append(section);
    }
  }
};

fetch("openapi.json")
  .then((answer) => {
    if (answer.ok) return answer.json();
    throw new Error(answer.status === 401 ? "it needs a key; give yours to the page at / and come back" : `${answer.status}`);
  })
  .then(show)
  .catch((error) => { document.getElementById("status").textContent = `The description could not be loaded: ${error.message}`; });
