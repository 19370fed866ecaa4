"use strict";
// Without this script every answer of every strength is shown; with it, those of one step.
(() => {
  const bar = document.querySelector(".slider");
  if (!bar) return;
  const slider = bar.querySelector("input");
  const arms = [...bar.querySelectorAll("[data-strengths]")];
  const cells = [...document.querySelectorAll("[data-step]")];
  const show = () => {
    const step = Number(slider.value);
    for (const cell of cells) {
      cell.hidden = Number(cell.dataset.step) !== Math.min(step, Number(cell.dataset.last));
    }
    for (const arm of arms) {
      const strengths = arm.dataset.strengths.split(" ");
      arm.querySelector("b").textContent = strengths[Math.min(step, strengths.length - 1)];
    }
    slider.setAttribute("aria-valuetext", bar.querySelector("output").textContent);
  };
  slider.addEventListener("input", show);
  bar.hidden = false;
  show();
})();
