// What the page asks of the service, one piece of work at a time: X-ray → report, report → X-ray, and back.

import { Problem, blobOf, drawImage, match, writeReport } from "./api.js";
import { make } from "./dom.js";
import { $, listKeywords, listPatches, reset, settle, shown, viewer, words } from "./link.js";

let running = null;
let repeat = () => {};

export const retry = () => repeat();
export const stop = () => running?.abort();
export const read = (blob, truth, seed) => run((signal) => readImage(blob, truth, seed, signal));
export const draw = (report, seed) => run((signal) => drawReport(report, seed, signal));
export const goBack = () => run(shown.mode === "read" ? drawBack : readBack);

export function setState(state, said = "") {
  $("exhibit").dataset.state = state;
  $("exhibit").setAttribute("aria-busy", String(state === "loading"));
  $("status").textContent = said;
  $("back").disabled = $("again").disabled = state !== "ready";
}

function fail(error) {
  if (error.name === "AbortError") return;
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401) $("token-form").hidden = false;
  $("problem-title").textContent = `${error.title}.`;
  $("problem-detail").textContent = error.detail;
  $("problem-id").textContent = error.requestId && `(request ${error.requestId})`;
  $("problem").hidden = error.status === 401;
  setState(shown.match ? "ready" : "error");
}

// Runs one piece of work; a newer one takes its place.
export async function run(work) {
  running?.abort();
  running = new AbortController();
  repeat = () => run(work);
  $("problem").hidden = $("token-form").hidden = true;
  const { signal } = running;
  try {
    await work(signal);
  } catch (error) {
    if (!signal.aborted) fail(error);
  }
}

async function readImage(blob, truth, seed, signal) {
  reset();
  Object.assign(shown, { blob, truth, seed });
  setState("loading", "Reading the X-ray…");
  await present(blob, "The X-ray that was given");
  const answer = await writeReport(blob, seed, {
    keywords(keywords) {
      setState("loading", "Writing the report…");
      listKeywords(keywords);
    },
    word: (text) => words.append(text),
  }, signal);
  const preview = `data:image/png;base64,${answer.preview}`;
  if (viewer.image.classList.contains("unreadable")) viewer.show(preview, answer.image, "The X-ray that was given");
  shown.url = viewer.image.src;
  settle(answer.report, answer.match);
  setState("ready", answer.status === "ok" ? "" : "The report has no end: it was cut at its longest length.");
}

async function drawReport(report, seed, signal) {
  reset();
  Object.assign(shown, { truth: [], seed });
  viewer.clear();
  words.append(report);
  setState("loading", "Drawing the X-ray…");
  const drawn = await drawImage(report, seed, signal);
  shown.blob = await blobOf(drawn.png);
  await present(shown.blob, "The X-ray drawn from the report; synthetic");
  listPatches(drawn.keypatches);
  setState("loading", "Matching words and regions…");
  settle(report, await match(shown.blob, report, signal));
  setState("ready");
}

// Shows an image file; where the browser cannot read it, an empty film until the service has.
async function present(blob, alt) {
  const url = URL.createObjectURL(blob);
  const size = await imageSize(url);
  shown.url = url;
  viewer.show(url, size ?? { width: 1, height: 1 }, alt);
  if (!size) viewer.image.classList.add("unreadable");
}

async function imageSize(url) {
  const image = make("img", { className: "unrotated", src: url });
  try {
    await image.decode();
    return { width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    return null;
  }
}

async function drawBack(signal) {
  setState("loading", "Drawing an X-ray from the report…");
  const drawn = await drawImage(shown.report, shown.seed, signal);
  comeBack("The X-ray drawn from this report, beside the one it was written from.",
    film(shown.url, "Given"), film(`data:image/png;base64,${drawn.png}`, "Drawn from the report; synthetic"));
  listPatches(drawn.keypatches);
  $("patches-part").hidden = false;
}

async function readBack(signal) {
  setState("loading", "Reading the X-ray that was drawn…");
  const answer = await writeReport(shown.blob, shown.seed, {}, signal);
  comeBack("The report written from the X-ray that was drawn, beside the one it was drawn from.",
    quote(shown.report, "Given"), quote(answer.report, "Written from the drawn X-ray"));
}

function comeBack(note, ...cards) {
  $("return-note").textContent = note;
  $("pair").replaceChildren(...cards);
  $("return").hidden = false;
  setState("ready");
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("return").scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "nearest" });
}

const card = (content, caption) => make("figure", {}, content, make("figcaption", {}, caption));
const film = (url, caption) => card(make("img", { src: url, alt: caption }), caption);
const quote = (text, caption) => card(make("blockquote", {}, text), caption);
