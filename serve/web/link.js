// Words ↔ regions: what is shown now, and what lights up when something is pointed at.

import { make } from "./dom.js";
import { Viewer } from "./viewer.js";
import { Words, showKeywords } from "./words.js";

export const $ = (id) => document.getElementById(id);
export const viewer = new Viewer($("stage"), showRegion);
export const words = new Words($("words"), showWord);
export const shown = { mode: "read", blob: null, url: "", report: "", match: null, seed: 0, truth: [], rest: null };
let lit = { word: null, box: null };

// A word lights its region, one shape; the adaptive patch that matches it best, and its cell, stay visible beside it.
function showWord(index) {
  if (index === null) return rest();
  const { match: found } = shown;
  const word = found.words[index];
  const phrase = found.phrases.find((one) => one.words.includes(index));
  const indices = phrase?.words ?? [index];
  const text = phrase?.text ?? word.text;
  if (phrase?.denied) {
    focus([], indices);
    return say(`The report says that “${text}” is absent: it has no region`);
  }
  const seen = !phrase || phrase.groundable;
  const marks = word.region < 0 ? [] : [{ outline: found.regions[word.region].outline, kind: seen ? "mark" : "doubt" }];
  const patch = { box: word.box, kind: "patch" };
  focus([...marks, patch, { box: found.fixed_boxes[word.patch], kind: "cell" }], indices);
  say(seen ? `“${text}” is seen here, similarity of the best patch ${word.score.toFixed(2)}`
    : `The image does not seem to show “${text}”; this is the likest place`);
}

function showRegion(patch) {
  if (patch === null) return rest();
  const { match: found } = shown;
  const indices = [...found.words.keys()].filter((index) => found.words[index].patch === patch);
  focus([{ box: found.boxes[patch], kind: "mark" }, { box: found.fixed_boxes[patch], kind: "cell" }], indices);
  say(`This region matches ${indices.map((index) => `“${found.words[index].text}”`).join(", ")}`);
}

// Nothing is pointed at: the word that was shown first is shown again.
export function rest() {
  if (shown.rest === null) return focus([], []);
  showWord(shown.rest);
}

export function focus(marks, indices) {
  const box = viewer.mark(marks);
  lit = { word: words.light(indices), box };
  drawLeader();
}

export function say(text) {
  $("caption").textContent = text;
}

// A line from the word to its region; it leaves below the word, so that it crosses no other word of its row.
export function drawLeader() {
  const { word, box } = lit;
  const leader = $("leader");
  leader.classList.toggle("on", Boolean(word && box));
  if (!word || !box) return;
  const origin = $("exhibit").getBoundingClientRect();
  const from = word.getBoundingClientRect();
  const to = box.getBoundingClientRect();
  const [x0, y0] = [from.left - origin.left + 4, from.bottom - origin.top];
  const [x1, y1] = [to.right - origin.left, to.top + to.height / 2 - origin.top];
  const bend = (x0 - x1) / 2;
  leader.querySelector("path").setAttribute("d", `M${x0} ${y0}C${x0 - bend} ${y0} ${x1 + bend} ${y1} ${x1} ${y1}`);
  leader.querySelector("circle").setAttribute("cx", x1);
  leader.querySelector("circle").setAttribute("cy", y1);
}

export function showTruth() {
  viewer.setTruth($("truth").checked ? shown.truth : []);
}

// A report and its match, shown for good; the most telling word is lit until another is pointed at.
export function settle(report, found) {
  Object.assign(shown, { report, match: found });
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

export function listKeywords(keywords) {
  showKeywords($("keywords"), keywords, (keyword) => {
    if (!keyword) return rest();
    focus([{ box: keyword.box, kind: "mark" }], []);
    say(`Keyword “${keyword.text}”, similarity ${keyword.score.toFixed(2)}`);
  });
}

export function listPatches(keypatches) {
  $("patches").replaceChildren(...keypatches.map((patch) => {
    const crop = patch.crop ? [make("img", { src: `data:image/png;base64,${patch.crop}`, alt: "" })] : [];
    const score = make("span", { className: "dim" }, patch.score.toFixed(2));
    return make("li", {}, ...crop, make("b", {}, patch.word), score);
  }));
}

export function reset() {
  $("return").hidden = true;
  words.clear();
  $("keywords").replaceChildren();
  $("patches").replaceChildren();
  Object.assign(shown, { match: null, rest: null, report: "" });
  focus([], []);
}
