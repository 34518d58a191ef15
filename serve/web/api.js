// Calls to the service. Every failure is thrown as a Problem with what the service said of it.

export class Problem extends Error {
  constructor({ title = "No answer", detail = "The service cannot be reached.", status = 0, request_id = "" }) {
    super(detail);
    Object.assign(this, { title, detail, status, requestId: request_id });
  }
}

let token = "";

export function setToken(value) {
  token = value;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem({});
  }
  if (response.ok) return response;
  const said = response.headers.get("content-type")?.includes("json") ? await response.json() : {};
  throw new Problem({ title: `Error ${response.status}`, detail: "The service refused.", status: response.status, ...said });
}

const json = (body) => ({ method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

function form(fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return { method: "POST", body };
}

export const get = async (path) => (await ask(path)).json();
export const getBlob = async (path) => (await ask(path)).blob();
export const drawImage = async (report, seed, signal) => (await ask("v1/image", { ...json({ report, seed }), signal })).json();
export const match = async (image, report, signal) => (await ask("v1/match", { ...form({ image, report }), signal })).json();

// Writes a report; calls on[event](data) for each event of the stream and returns the last, whole answer.
export async function writeReport(image, seed, on, signal) {
  const options = { ...form({ image, seed, explain: true }), headers: { Accept: "text/event-stream" }, signal };
  const response = await ask("v1/report", options);
  let buffer = "";
  let answer = null;
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
    buffer += value;
    const events = buffer.split("\n\n");
    buffer = events.pop();
    for (const event of events) {
      const [, name, data] = event.match(/^event: (\w+)\ndata: (.*)$/s);
      const parsed = JSON.parse(data);
      if (name === "problem") throw new Problem(parsed);
      if (name === "report") answer = parsed;
      on[name]?.(parsed);
    }
  }
  if (!answer) throw new Problem({ title: "Cut short", detail: "The answer ended before it was whole." });
  return answer;
}

export async function blobOf(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}
