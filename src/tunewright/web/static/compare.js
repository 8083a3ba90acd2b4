"use strict";
// The losses of several runs in one chart, told apart by colour and dashes.
(() => {
  const { chart, smoothed } = window.tunewright;
  const COLOURS = ["--accent", "--gguf", "--pass", "--fail", "--base", "--thin"];
  const DASHES = [undefined, [6, 3], [2, 3], [8, 3, 2, 3], undefined, [4, 4]];
  const runs = JSON.parse(document.getElementById("compare").dataset.curves);

  function show(id, curves, dots) {
    const series = runs.map((run, index) => ({ label: run.name, colour: COLOURS[index], dash: DASHES[index], dots }));
    const xs = [...new Set(curves.flatMap((curve) => [...curve.keys()]))].sort((a, b) => a - b);
    const box = document.getElementById(id);
    if (xs.length) {
      chart(box, series).setData([xs, ...curves.map((curve) => xs.map((x) => curve.get(x) ?? null))]);
      return;
    }
    box.textContent = "Nothing was measured yet.";
    box.classList.add("none");
  }

  show("held-out", runs.map((run) => new Map(run.evaluations.map((point) => [point.step, point.eval_loss]))), true);
  show("train", runs.map((run) => {
    const smooth = smoothed(run.steps.map((point) => point.loss), Math.max(2, Math.round(run.steps.length / 25)));
    return new Map(run.steps.map((point, index) => [point.step, smooth[index]]));
  }), false);
})();
