// The page: what is shown now, and what happens when something is chosen, dropped, pointed at or pressed.

import { Problem, blobOf, drawImage, get, getBlob, match, setToken, writeReport } from "./api.js";
import { Viewer, move } from "./viewer.js";
import { Words, showKeywords } from "./words.js";

const $ = (id) => document.getElementById(id);
const viewer = new Viewer($("stage"), showRegion);
const words = new Words($("words"), showWord);
const shown = { mode: "read", blob: null, url: "", report: "", match: null, seed: 0, truth: [], rest: null };
let running = null;
let repeat = () => {};

// ---- states -------------------------------------------------------------------------------------------------------

function setState(state, said = "") {
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
async function run(work) {
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

function reset() {
  $("return").hidden = true;
  words.clear();
  $("keywords").replaceChildren();
  $("patches").replaceChildren();
  Object.assign(shown, { match: null, rest: null, report: "" });
  focus([], []);
}

// ---- X-ray → report, report → X-ray -------------------------------------------------------------------------------

const read = (blob, truth, seed) => run((signal) => readImage(blob, truth, seed, signal));
const draw = (report, seed) => run((signal) => drawReport(report, seed, signal));

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
  settle(answer.report, answer.match, answer.status);
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
  settle(report, await match(shown.blob, report, signal), drawn.status);
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
  const image = new Image();
  image.className = "unrotated";
  image.src = url;
  try {
    await image.decode();
    return { width: image.naturalWidth, height: image.naturalHeight };
  } catch {
    return null;
  }
}

function settle(report, found, status) {
  Object.assign(shown, { report, match: found });
  setState("ready", status === "ok" ? "" : "The report has no end: it was cut at its longest length.");
  if (!found) {
    words.clear();
    words.append(report || "The report came out empty. Try another draft.");
    return;
  }
  words.matched(report, found.words);
  const byPatch = Map.groupBy(found.words.keys(), (index) => found.words[index].patch);
  viewer.setRegions([...byPatch].map(([patch, indices]) => ({
    patch,
    box: found.boxes[patch],
    label: `Region of: ${indices.map((index) => found.words[index].text).join(", ")}`,
  })));
  $("key-truth").hidden = !shown.truth.length;
  showTruth();
  const best = found.words.reduce((top, word, index) => (telling(word) > telling(found.words[top]) ? index : top), 0);
  shown.rest = best;
  showWord(best);
}

// Which word to show first: a strong match, and long enough to mean something.
const telling = (word) => (word.start < 0 || word.text.length < 6 ? -2 : word.score);

function listKeywords(keywords) {
  showKeywords($("keywords"), keywords, (keyword) => {
    if (!keyword) return rest();
    focus([{ box: keyword.box, kind: "mark" }], []);
    say(`Keyword “${keyword.text}”, similarity ${keyword.score.toFixed(2)}`);
  });
}

function listPatches(keypatches, root = $("patches")) {
  root.replaceChildren(...keypatches.map((patch) => {
    const item = document.createElement("li");
    if (patch.crop) {
      const image = new Image();
      image.src = `data:image/png;base64,${patch.crop}`;
      image.alt = "";
      item.append(image);
    }
    const word = document.createElement("b");
    word.textContent = patch.word;
    const score = document.createElement("span");
    score.className = "dim";
    score.textContent = patch.score.toFixed(2);
    item.append(word, score);
    return item;
  }));
}

// ---- words ↔ regions ----------------------------------------------------------------------------------------------

const MOST = 4; // regions lit for one word, the weaker ones fainter
const NEAR = 0.75; // share of the best similarity that still counts

function showWord(index) {
  if (index === null) return rest();
  const { match: found } = shown;
  const row = found.similarity[index];
  const best = found.words[index];
  const order = [...row.keys()].sort((a, b) => row[b] - row[a]).slice(0, MOST);
  const near = order.filter((patch) => row[patch] >= NEAR * row[best.patch]);
  const marks = near.map((patch) => ({ box: found.boxes[patch], kind: "mark", strength: strength(row, patch) }));
  focus([...marks, { box: found.fixed_boxes[best.patch], kind: "cell" }], [index]);
  say(`“${best.text}” matches this region, similarity ${best.score.toFixed(2)}`);
}

function strength(row, patch) {
  const [low, high] = [Math.min(...row), Math.max(...row)];
  return high > low ? ((row[patch] - low) / (high - low)) ** 2 : 1;
}

function showRegion(patch) {
  if (patch === null) return rest();
  const { match: found } = shown;
  const indices = [...found.words.keys()].filter((index) => found.words[index].patch === patch);
  focus([{ box: found.boxes[patch], kind: "mark" }, { box: found.fixed_boxes[patch], kind: "cell" }], indices);
  say(`This region matches ${indices.map((index) => `“${found.words[index].text}”`).join(", ")}`);
}

// Nothing is pointed at: the word that was shown first is shown again.
function rest() {
  if (shown.rest === null) return focus([], []);
  showWord(shown.rest);
}

function focus(marks, indices) {
  const box = viewer.mark(marks);
  drawLeader(words.light(indices), box);
}

function say(text) {
  $("caption").textContent = text;
}

function drawLeader(word, box) {
  const leader = $("leader");
  leader.classList.toggle("on", Boolean(word && box));
  if (!word || !box) return;
  const origin = $("exhibit").getBoundingClientRect();
  const from = word.getBoundingClientRect();
  const to = box.getBoundingClientRect();
  const [x0, y0] = [from.left - origin.left - 3, from.top + from.height / 2 - origin.top];
  const [x1, y1] = [to.right - origin.left, to.top + to.height / 2 - origin.top];
  const bend = (x0 - x1) / 2;
  leader.querySelector("path").setAttribute("d", `M${x0} ${y0}C${x0 - bend} ${y0} ${x1 + bend} ${y1} ${x1} ${y1}`);
  leader.querySelector("circle").setAttribute("cx", x1);
  leader.querySelector("circle").setAttribute("cy", y1);
}

function showTruth() {
  viewer.setTruth($("truth").checked ? shown.truth : []);
}

// ---- and back -----------------------------------------------------------------------------------------------------

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

function card(content, caption) {
  const figure = document.createElement("figure");
  const words = document.createElement("figcaption");
  words.textContent = caption;
  figure.append(content, words);
  return figure;
}

function film(url, caption) {
  const image = new Image();
  image.src = url;
  image.alt = caption;
  return card(image, caption);
}

function quote(text, caption) {
  const block = document.createElement("blockquote");
  block.textContent = text;
  return card(block, caption);
}

// ---- controls -----------------------------------------------------------------------------------------------------

function setMode(mode) {
  if (mode === shown.mode) return;
  running?.abort();
  shown.mode = mode;
  for (const name of ["read", "draw"]) {
    const chosen = name === mode;
    $(`tab-${name}`).setAttribute("aria-selected", String(chosen));
    $(`tab-${name}`).tabIndex = chosen ? 0 : -1;
    $(`source-${name}`).hidden = !chosen;
  }
  $("keywords-part").hidden = mode === "draw";
  $("patches-part").hidden = mode === "read";
  $("back").textContent = mode === "read" ? "Draw it back" : "Read it back";
  $("again").textContent = mode === "read" ? "Another draft" : "Another drawing";
  reset();
  viewer.clear();
  $("problem").hidden = $("key-truth").hidden = true;
  say(mode === "read" ? "Choose an X-ray." : "Describe an X-ray, then press “Draw the X-ray”.");
  setState("empty");
}

function upload(file) {
  if (file) read(file, [], 0);
}

function listenToControls() {
  const tabs = [$("tab-read"), $("tab-draw")];
  tabs[0].parentElement.addEventListener("keydown", (event) => move(event, tabs));
  for (const tab of tabs) {
    tab.addEventListener("click", () => setMode(tab.id.slice(4)));
    tab.addEventListener("focus", () => setMode(tab.id.slice(4)));
  }
  $("file").addEventListener("change", (event) => {
    upload(event.target.files[0]);
    event.target.value = "";
  });
  const drop = $("drop");
  for (const type of ["dragenter", "dragover", "dragleave", "drop"]) {
    document.addEventListener(type, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", type === "dragenter" || type === "dragover");
      if (type !== "drop" || !event.dataTransfer.files.length) return;
      setMode("read");
      upload(event.dataTransfer.files[0]);
    });
  }
  $("describe").addEventListener("submit", (event) => {
    event.preventDefault();
    draw($("report-text").value.trim(), 0);
  });
  $("again").addEventListener("click", () => {
    if (shown.mode === "read") read(shown.blob, shown.truth, shown.seed + 1);
    else draw(shown.report, shown.seed + 1);
  });
  $("back").addEventListener("click", () => run(shown.mode === "read" ? drawBack : readBack));
  $("retry").addEventListener("click", () => repeat());
  $("truth").addEventListener("change", showTruth);
  $("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setToken($("token").value);
    $("token").value = "";
    start();
  });
  addEventListener("resize", rest);
}

async function listSamples() {
  const samples = await get("v1/samples");
  const pictures = await Promise.all(samples.map(async (sample) => getBlob(sample.url)));
  const buttons = samples.map((sample, index) => {
    const button = document.createElement("button");
    button.type = "button";
    const image = new Image();
    image.src = URL.createObjectURL(pictures[index]);
    image.alt = `Phantom with ${sample.findings.join(", ") || "no finding"}`;
    button.title = image.alt;
    button.append(image);
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      read(pictures[index], sample.boxes, 0);
    });
    button.setAttribute("aria-pressed", "false");
    return button;
  });
  $("samples").replaceChildren(...buttons);
  $("report-samples").replaceChildren(...samples.slice(0, 4).map((sample) => {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "chip";
    button.textContent = sample.findings[0] ?? "normal";
    button.addEventListener("click", () => ($("report-text").value = sample.report));
    return button;
  }));
  return buttons;
}

async function start() {
  await run(async () => {
    const served = await get("v1/models");
    if (served.data === "phantom") $("origin").textContent = "Trained on phantoms: nothing here is clinical.";
    const [first] = await listSamples();
    first?.click(); // one look should show what the words are about
  });
}

listenToControls();
start();
