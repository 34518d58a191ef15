// A report as words that can be pointed at, and keywords as chips.

import { make, onPoint } from "./dom.js";
import { move } from "./viewer.js";

// Words appear as they are written; `matched` replaces them by words with regions.
export class Words {
  constructor(root, onWord) {
    this.root = root;
    this.onWord = onWord;
    this.clear();
  }

  clear() {
    this.root.replaceChildren();
    this.buttons = [];
  }

  append(text) {
    this.root.append(make("span", { className: "plain" }, text));
  }

  // The report with every matched word a button; its underline says how strongly it matches.
  matched(report, words) {
    this.clear();
    const scores = words.map((word) => word.score);
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    let cursor = 0;
    words.forEach((word, index) => {
      if (word.start < cursor) return;
      this.root.append(report.slice(cursor, word.start));
      const text = report.slice(word.start, word.end);
      const tabIndex = this.buttons.length ? -1 : 0;
      const button = make("button", { type: "button", className: "word", tabIndex }, text);
      button.dataset.index = index;
      button.style.setProperty("--score", ((word.score - low) / (high - low || 1)).toFixed(2));
      onPoint(button, (pointed) => this.onWord(pointed ? index : null));
      this.buttons.push(button);
      this.root.append(button);
      cursor = word.end;
    });
    this.root.append(report.slice(cursor));
    this.root.onkeydown = (event) => move(event, this.buttons);
  }

  // Lights up words by their index; returns the first one's element.
  light(indices) {
    const wanted = new Set(indices.map(String));
    for (const button of this.buttons) button.classList.toggle("lit", wanted.has(button.dataset.index));
    return this.buttons.find((button) => wanted.has(button.dataset.index)) ?? null;
  }
}

export function showKeywords(root, keywords, onKeyword) {
  const chips = keywords.map((keyword, index) => {
    const title = keyword.group.replaceAll("_", " ").toLowerCase();
    const chip = make("button", { type: "button", className: "chip", title, tabIndex: index ? -1 : 0 }, keyword.text);
    chip.dataset.group = keyword.group;
    onPoint(chip, (pointed) => onKeyword(pointed ? keyword : null));
    return chip;
  });
  root.replaceChildren(...chips);
  root.onkeydown = (event) => move(event, chips);
}
