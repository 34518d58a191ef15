// The page's controls: tabs, files, samples, buttons.

import { get, getBlob, setToken } from "./api.js";
import { make } from "./dom.js";
import { $, drawLeader, reset, say, showTruth, shown, viewer } from "./link.js";
import { move } from "./viewer.js";
import { draw, goBack, read, retry, run, setState, stop } from "./work.js";

function setMode(mode) {
  if (mode === shown.mode) return;
  stop();
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
  $("back").addEventListener("click", goBack);
  $("retry").addEventListener("click", retry);
  $("truth").addEventListener("change", showTruth);
  $("token-form").addEventListener("submit", (event) => {
    event.preventDefault();
    setToken($("token").value);
    $("token").value = "";
    start();
  });
  addEventListener("resize", drawLeader);
}

async function listSamples() {
  const samples = await get("v1/samples");
  const pictures = await Promise.all(samples.map(async (sample) => getBlob(sample.url)));
  const buttons = samples.map((sample, index) => {
    const title = `Phantom with ${sample.findings.join(", ") || "no finding"}`;
    const image = make("img", { src: URL.createObjectURL(pictures[index]), alt: title });
    const button = make("button", { type: "button", title, ariaPressed: "false" }, image);
    button.addEventListener("click", () => {
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
      read(pictures[index], sample.boxes, 0);
    });
    return button;
  });
  $("samples").replaceChildren(...buttons);
  $("report-samples").replaceChildren(...samples.slice(0, 4).map((sample) => {
    const onclick = () => ($("report-text").value = sample.report);
    const text = sample.findings.slice(0, 2).join(", ") || "no finding";
    return make("button", { type: "button", className: "chip", onclick }, text);
  }));
  return buttons;
}

async function start() {
  await run(async () => {
    const served = await get("v1/models");
    if (served.trained_on === "phantom") $("origin").textContent = "Trained on phantoms: nothing here is clinical.";
    const [first] = await listSamples();
    first?.click(); // one look should show what the words are about
  });
}

listenToControls();
start();
