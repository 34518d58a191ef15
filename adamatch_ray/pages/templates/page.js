// Pointing at a word lights its box, and at a box its word; arrow keys go from word to word.
for (const study of document.querySelectorAll(".study")) {
  const marked = [...study.querySelectorAll("[data-mark]")];
  const show = (name) => {
    study.classList.toggle("looking", Boolean(name));
    for (const part of marked) part.classList.toggle("lit", part.dataset.mark === name);
  };
  const of = (event) => event.target.closest("[data-mark]")?.dataset.mark;
  study.addEventListener("pointerover", (event) => show(of(event)));
  study.addEventListener("pointerleave", () => show());
  study.addEventListener("focusin", (event) => show(of(event)));
  study.addEventListener("focusout", () => show());
}
for (const group of document.querySelectorAll(".says")) {
  const words = [...group.querySelectorAll(".word")];
  group.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const next = words[words.indexOf(event.target) + step];
    if (!step || !next) return;
    event.preventDefault();
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
}
