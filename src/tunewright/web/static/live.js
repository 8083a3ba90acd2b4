"use strict";
// The curves, answers and notes of a run from the stream of its events, which begins at the run's beginning.
(() => {
  const { ask, chart, smoothed, short } = window.tunewright;
  const root = document.getElementById("live");
  const at = (id) => document.getElementById(id);
  const NAMES = ["loss", "learning_rate", "grad_norm", "tokens_per_second"];
  const SECONDS_BETWEEN_TRIES = 3;
  let steps = [];
  let evaluations = [];
  let samples = new Map();
  let notes = [];
  let plots = null;
  let isDue = false;

  function reset() {
    steps = [];
    evaluations = [];
    samples = new Map();
    notes = [];
    draw();
  }

  // A run that went back to a checkpoint does steps again: the new account takes the place of the old.
  function add(points, point) {
    while (points.length && points[points.length - 1].step >= point.step) points.pop();
    points.push(point);
  }

  function take(event) {
    if (!event) return;
    if (event.kind === "metric" && "eval_loss" in event) add(evaluations, event);
    else if (event.kind === "metric" && "loss" in event) add(steps, event);
    else if (event.kind === "sample") takeSample(event);
    else if (event.kind === "warning") notes.push({ verdict: "warn", stage: event.stage, text: event.text });
    else if (event.kind === "evidence" && event.verdict !== "pass") {
      notes.push({ verdict: event.verdict, stage: event.stage, text: `${event.name.replaceAll("_", " ")}: ${event.detail}` });
    } else if (event.kind === "stage_started") notes = notes.filter((note) => note.stage !== event.stage);
    else return;
    if (!isDue) {
      isDue = true;
      requestAnimationFrame(() => { isDue = false; draw(); });
    }
  }

  function takeSample(event) {
    const known = samples.get(event.id) || { prompt: event.prompt, target: event.target, answers: [] };
    add(known.answers, { step: event.step, text: event.answer });
    samples.set(event.id, known);
  }

  function open() {
    const line = (label, colour, more = {}) => ({ label, colour, ...more });
    return {
      loss: chart(at("loss"), [
        line("train", "--thin", { width: 1 }),
        line("smoothed", "--accent"),
        line("held-out", "--gguf", { width: 1.5, dash: [3, 4], dots: true }),
      ]),
      learning_rate: chart(at("learning_rate"), [line("rate", "--accent")], false),
      grad_norm: chart(at("grad_norm"), [line("norm", "--accent", { width: 1 })], false),
      tokens_per_second: chart(at("tokens_per_second"), [line("tokens/s", "--accent")], false),
    };
  }

  function draw() {
    at("training").hidden = !steps.length && !evaluations.length;
    if (!at("training").hidden) drawCurves();
    drawSamples();
    drawNotes();
  }

  function drawCurves() {
    plots = plots || open();
    const heldOut = new Map(evaluations.map((point) => [point.step, point.eval_loss]));
    const losses = new Map(steps.map((point) => [point.step, point.loss]));
    const smooth = smoothed(steps.map((point) => point.loss), Math.max(2, Math.round(steps.length / 25)));
    const smoothAt = new Map(steps.map((point, index) => [point.step, smooth[index]]));
    const xs = [...new Set([...losses.keys(), ...heldOut.keys()])].sort((a, b) => a - b);
    const column = (values) => xs.map((x) => values.get(x) ?? null);
    plots.loss.setData([xs, column(losses), column(smoothAt), column(heldOut)]);
    const own = steps.map((point) => point.step);
    for (const name of NAMES.slice(1)) plots[name].setData([own, steps.map((point) => point[name] ?? null)]);
    drawFigures();
  }

  function drawFigures() {
    const last = steps[steps.length - 1] || {};
    const heldOut = evaluations.filter((point) => point.eval_loss !== null);
    const first = heldOut[0];
    const best = heldOut.reduce((found, point) => (found && found.eval_loss <= point.eval_loss ? found : point), null);
    const rows = [
      ["Step", last.step ?? 0, last.epoch ? `epoch ${short(last.epoch)}` : ""],
      ["Loss", short(last.loss), "of the last step"],
      ["Held-out loss", best ? short(heldOut[heldOut.length - 1].eval_loss) : "—",
        best && best !== first ? `${short(first.eval_loss)} before, best ${short(best.eval_loss)}` : ""],
      ["Learning rate", short(last.learning_rate), ""],
      ["Tokens per second", last.tokens_per_second ? Math.round(last.tokens_per_second).toLocaleString("en") : "—",
        last.supervised_tokens_per_second ? `${Math.round(last.supervised_tokens_per_second).toLocaleString("en")} learned` : ""],
    ];
    at("figures").replaceChildren(...rows.map(([name, value, note]) => {
      const row = element("div");
      const figure = element("dd", String(value));
      if (note) figure.append(element("small", note));
      row.append(element("dt", name), figure);
      return row;
    }));
    at("loss").setAttribute("aria-label",
      `Loss by step: ${short(last.loss)} after step ${last.step ?? 0}; held-out ${rows[2][1]}`);
  }

  function element(name, text = "", css = "") {
    const made = document.createElement(name);
    made.textContent = text;
    if (css) made.className = css;
    return made;
  }

  function drawSamples() {
    at("answered").hidden = !samples.size;
    const before = [...at("samples").querySelectorAll("details")].map((one) => one.open);
    at("samples").replaceChildren(...[...samples.values()].map((sample, index) => {
      const box = element("details");
      box.open = before[index] ?? index === 0;
      const flat = sample.prompt.replace(/\s+/g, " ");
      box.append(element("summary", flat.length > 110 ? `${flat.slice(0, 109)}…` : flat));
      const list = element("dl", "", "turns");
      const turn = (name, text, css = "") => {
        const row = element("div", "", css);
        row.append(element("dt", name), element("dd", text));
        list.append(row);
      };
      turn("prompt", sample.prompt);
      for (const answer of sample.answers) turn(answer.step ? `after step ${answer.step}` : "before training", answer.text);
      turn("target", sample.target, "target");
      box.append(list);
      return box;
    }));
  }

  function drawNotes() {
    at("noticed").hidden = !notes.length;
    at("notes").replaceChildren(...notes.map((note) => {
      const row = element("li");
      const glyph = element("span", note.verdict === "fail" ? "✕ failed" : "! warning", `badge ${note.verdict}`);
      row.append(glyph, element("span", ` ${note.stage}: `, "soft"), element("span", note.text));
      return row;
    }));
  }

  // The browser comes back by itself with Last-Event-ID; only before the run exists is it told to go away.
  function listen() {
    const source = new EventSource(`/api/v1/runs/${root.dataset.run}/events`);
    source.onmessage = (message) => take(JSON.parse(message.data));
    source.addEventListener("begun-anew", reset);
    source.onerror = () => {
      if (source.readyState !== EventSource.CLOSED) return;
      reset();
      setTimeout(listen, SECONDS_BETWEEN_TRIES * 1000);
    };
  }

  function followLog(box) {
    const text = box.querySelector("pre");
    let after = 0;
    let timer = 0;
    async function look() {
      try {
        const path = `/api/v1/jobs/${box.dataset.job}/log?attempt=${box.dataset.attempt}&after=${after}`;
        const piece = await ask("GET", path);
        const atEnd = text.scrollTop + text.clientHeight >= text.scrollHeight - 8;
        if (piece.text) text.append(piece.text);
        if (atEnd) text.scrollTop = text.scrollHeight;
        after = piece.next;
      } catch (error) {
        if (!text.textContent) text.textContent = error.message;
      }
      timer = setTimeout(look, 2000);
    }
    box.addEventListener("toggle", () => { if (box.open) look(); else clearTimeout(timer); });
  }

  listen();
  if (at("log")) followLog(at("log"));
})();
